"""Jobs of the coordinator's own worker."""
