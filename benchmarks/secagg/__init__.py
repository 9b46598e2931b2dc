"""What secure aggregation costs beside plain sums."""
