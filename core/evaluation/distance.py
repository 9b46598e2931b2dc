"""Distances between many records in bounded memory, for the evaluation only.

All metrics compare DIRECTIONS x / |x|: the scale of a record carries nothing in this project, and
a per-record scaling is the only one that needs no look at other records.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]

CHUNK_ROWS = 1_024  # bounds memory at 1,024 rows against all others; results do not depend on it


def unit_rows(x: NDArray[np.floating]) -> Rows:
    """Directions [n, d]. Raises ``ValueError`` for rows that have none (zero, NaN, infinity)."""
    wide = np.asarray(x, np.float64)
    if wide.ndim != 2:
        raise ValueError(f"expected rows [n, d], found {list(wide.shape)}")
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("rows that are zero, NaN or infinite have no direction: remove them first")
    return np.asarray(wide / norms)


def squared_distances(a: Rows, b: Rows) -> Iterator[tuple[slice, Rows]]:
    """Chunks (rows of ``a``, squared distances [chunk, len(b)]) over all rows of ``a`` [n, d]."""
    lengths = np.sum(b**2, axis=1)
    for start in range(0, len(a), CHUNK_ROWS):
        part = slice(start, min(start + CHUNK_ROWS, len(a)))
        own = np.sum(a[part] ** 2, axis=1)[:, None]
        yield part, np.maximum(own + lengths - 2.0 * a[part] @ b.T, 0.0)
