"""Erasure of stored updates: after their retention period, or on a client's request."""
