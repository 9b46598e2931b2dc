"""Synthetic embeddings on request."""
