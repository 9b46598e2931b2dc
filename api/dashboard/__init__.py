"""Pages for people: what goes on, who is missing, what it has cost; and what may be done about it.

Rendered here, refreshed by htmx, drawn by uPlot; everything comes from this process.
"""
