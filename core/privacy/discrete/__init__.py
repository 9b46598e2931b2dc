"""Noise on a public grid: discrete Gaussians from random bits alone (docs/discrete-noise.md)."""
