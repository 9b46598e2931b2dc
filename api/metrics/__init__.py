"""What Prometheus may read of a coordinator."""
