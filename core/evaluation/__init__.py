"""How useful synthetic data is. Simulation only: these functions look at real records."""
