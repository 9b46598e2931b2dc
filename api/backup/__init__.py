"""Backups of the coordinator: its database and its objects, and putting them back."""
