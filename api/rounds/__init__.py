"""Rounds: what is open, who is missing, what was published."""
