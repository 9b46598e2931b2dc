"""Secure sums: what clients are asked beside their vectors, and what they have answered."""
