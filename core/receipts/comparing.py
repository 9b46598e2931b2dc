"""Are rows those that a model makes, up to rounding? For files made on another machine.

Another instruction set rounds the last bits of products otherwise. Rows then differ by about 1e-6,
and where a classifier chooses which proposals carry a label, one of them may fall on the other side
of a boundary: the rows of its class behind it, in the same block, then stand a place later or
earlier. So a row counts as the same if a row of its class, at most ``WINDOW`` places away among
those of its block, is within ``tolerance`` of it in every coordinate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.synthesis.rows import Block

WINDOW = 16  # places, among the rows of one class in one block
NEEDED = 0.99  # of all rows must be the same
# Largest difference of a coordinate; rows have norm sqrt(d), so coordinates are about 1.
TOLERANCE = {"float16": 4e-3, "float32": 1e-4, "float64": 1e-4}


@dataclass(frozen=True)
class Comparison:
    """``same`` of ``rows`` rows; ``labels``: all class ids are equal, in order."""

    rows: int
    same: int
    labels: bool

    @property
    def holds(self) -> bool:
        return self.labels and self.rows > 0 and self.same >= NEEDED * self.rows


def compare(file: Iterable[Block], made: Iterable[Block], tolerance: float) -> Comparison:
    """Block by block; a side that ends early leaves the other's rows without a partner."""
    rows = same = 0
    labels = True
    left, right = iter(file), iter(made)
    while True:
        one, other = next(left, None), next(right, None)
        if one is None and other is None:
            return Comparison(rows, same, labels)
        if one is None or other is None or len(one.y) != len(other.y):
            rows += max(len(block.y) for block in (one, other) if block is not None)
            labels = False
            continue
        rows += len(one.y)
        labels = labels and bool((one.y == other.y).all())
        same += _same(one, other, tolerance)


def _same(file: Block, made: Block, tolerance: float) -> int:
    found = _near(file.x, made.x, tolerance)
    for label in np.unique(file.y[~found]).tolist():
        mine, theirs = np.flatnonzero(file.y == label), np.flatnonzero(made.y == label)
        for place in np.flatnonzero(~found[mine]).tolist():
            window = theirs[max(0, place - WINDOW) : place + WINDOW + 1]
            row = mine[place]
            found[row] = _near(file.x[row], made.x[window], tolerance).any()
    return int(found.sum())


def _near(a: NDArray[np.float32], b: NDArray[np.float32], tolerance: float) -> NDArray[np.bool_]:
    """[n] whether rows are within the tolerance in every coordinate (NaN never is)."""
    return np.asarray((np.abs(a - b) <= tolerance).all(axis=-1))
