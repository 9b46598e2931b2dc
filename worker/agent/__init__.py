"""The site's side of a federation: its own ledger, its own limits, and the loop that works."""
