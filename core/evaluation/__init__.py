"""How useful, faithful and safe synthetic data is. Simulation only: it reads real records."""
