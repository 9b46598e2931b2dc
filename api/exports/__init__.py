"""Published generators to take away."""
