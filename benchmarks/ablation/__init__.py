"""What each part of the method is worth: one thing changed from the default plan at a time.

Simulation: all records lie in one place and noise is seeded, hence NOT PRIVATE. All rows of one
epsilon and seed share split, noise and coins, so that they differ by what was changed.
"""
