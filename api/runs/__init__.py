"""Runs: a plan made immutable, and its progress."""
