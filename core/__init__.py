"""The method: models, privacy, a site's work, the server's step, sampling. No web, no SQL."""
