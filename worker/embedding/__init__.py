"""``fedhypevae embed``: images of a site into the file of embeddings that its agent reads."""
