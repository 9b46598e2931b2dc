"""Replays: a published round recomputed from its stored updates, byte by byte."""
