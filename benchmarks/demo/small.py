"""Made-up clusters instead of images: for ``demo --small`` and the end-to-end tests only."""

from __future__ import annotations

import hashlib

import numpy as np

from benchmarks.scanner_digits import SITES, ScannerDigits, Site
from core.federation.plan import EmbeddingSpace

DIM = 16
CLASSES = ("north", "east", "south", "west")
_TRAIN, _TEST = 120, 40
_SEED = 11
_SHIFT = 0.3  # how far a site's clusters lie from the common ones, in units of their spread


def clusters() -> ScannerDigits:
    """Three sites of Gaussian clusters, 120 training and 40 held-out records each."""
    rng = np.random.default_rng(_SEED)
    centres = rng.normal(size=(len(CLASSES), DIM))
    sites = []
    for name in SITES:
        own = centres + _SHIFT * rng.normal(size=centres.shape)
        y = rng.integers(0, len(CLASSES), size=_TRAIN + _TEST)
        x = (own[y] + rng.normal(size=(len(y), DIM))).astype(np.float32)
        sites.append(Site(name, "clusters", x[:_TRAIN], y[:_TRAIN], x[_TRAIN:], y[_TRAIN:]))
    return ScannerDigits(_space(), tuple(sites))


def _space() -> EmbeddingSpace:
    return EmbeddingSpace(
        name="demo-clusters",
        backbone="none: Gaussian clusters out of a seeded generator",
        weights_digest="sha256:" + hashlib.sha256(f"clusters {_SEED}".encode()).hexdigest(),
        preprocessing="none",
        dim=DIM,
        classes=CLASSES,
    )
