"""The demo: the whole job with real processes on one machine."""
