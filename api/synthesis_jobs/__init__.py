"""Rows made in the background: larger files, with progress, cancelled or downloaded later."""
