"""How useful, faithful and safe synthetic records are: all methods on the same splits.

Simulation: all records lie in one place and noise is seeded, hence NOT PRIVATE. Epsilon is
recomputed from the events that each method executed.
"""
