"""The report of a run: what it is, what it has cost, what its rows are worth. Pure."""
