"""Simple private generators that the method must beat, correctly accounted. Simulation only."""
