"""Updates: the noised results that clients send."""
