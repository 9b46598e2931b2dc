"""Joins: clients that come to a completed run, by one sketch."""
