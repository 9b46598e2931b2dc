"""Mechanisms, noise, events, accounting: everything on which a privacy claim rests."""
