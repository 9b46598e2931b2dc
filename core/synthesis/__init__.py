"""From a published model to labelled embeddings: requests, sampling, file formats."""
