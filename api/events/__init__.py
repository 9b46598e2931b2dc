"""The audit trail as it is read: filtered pages, and a live feed of a run."""
