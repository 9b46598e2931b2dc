"""Simple methods that the method must beat, correctly accounted. Simulation only."""
