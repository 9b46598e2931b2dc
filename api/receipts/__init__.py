"""Receipts of synthetic rows, and the keys that sign them."""
