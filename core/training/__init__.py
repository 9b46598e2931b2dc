"""One site's part of a round: the sketch, the clipped sum of training gradients, the release."""
