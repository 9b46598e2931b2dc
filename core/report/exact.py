"""Comparisons of records with public rows that come out the same whoever else is in the batch.

A bin or a label jumps. If a record's distance changed in its last bit because another unit was
removed, which products of matrices may do to the rows of a remainder, that record's bin could jump
with it, and one unit would move what others add. So products decide only what is clear by a wide
margin; whatever lies closer is computed pair by pair, by sums whose order depends on nothing but
the number of dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.evaluation.distance import squared_distances

Vector = NDArray[np.float64]

# What products may be wrong by, of squared distances between directions: some 1e-13 in truth.
_MARGIN = 1e-9
_PIECE = 1 << 20  # numbers at once


def dot(rows: Vector, others: Vector) -> Vector:
    """[n] row by row of two [n, d]; the same bits for the same two rows."""
    return np.asarray(np.sum(np.ascontiguousarray(rows * others), axis=1))


def _of_pairs(
    rows: Vector, here: NDArray[np.intp], others: Vector, there: NDArray[np.intp], *, apart: bool
) -> Vector:
    """[p] for each pair of a row and another: their squared distance, or their inner product.

    In pieces: a model whose rows are all equally far from some record would otherwise make a
    site that has it run out of memory, and so say that it has it.
    """
    found = np.empty(len(here))
    piece = max(1, _PIECE // rows.shape[1])
    for start in range(0, len(here), piece):
        part = slice(start, start + piece)
        mine, other = rows[here[part]], others[there[part]]
        if apart:
            mine = other = mine - other
        found[part] = dot(mine, other)
    return found


def two_nearest(rows: Vector, others: Vector) -> Vector:
    """[n, 2] distances from directions [n, d] to the nearest and the next of ``others`` [m, d].

    Of two or more others.
    """
    found = np.empty((len(rows), 2))
    for part, rough in squared_distances(rows, others):
        limit = np.partition(rough, 1, axis=1)[:, 1] + 2.0 * _MARGIN
        here, there = np.nonzero(rough <= limit[:, None])
        squared = np.full(rough.shape, np.inf)
        squared[here, there] = _of_pairs(rows[part], here, others, there, apart=True)
        found[part] = np.sqrt(np.sort(np.partition(squared, 1, axis=1)[:, :2], axis=1))
    return found


def inside(rows: Vector, others: Vector, radii: Vector) -> NDArray[np.bool_]:
    """[n] is a direction within the radius [m] of any of ``others`` [m, d]?"""
    found = np.zeros(len(rows), bool)
    limits = radii**2
    for part, rough in squared_distances(rows, others):
        beyond = rough - limits
        sure = np.asarray((beyond < -_MARGIN).any(axis=1))
        here, there = np.nonzero((np.abs(beyond) <= _MARGIN) & ~sure[:, None])
        close = _of_pairs(rows[part], here, others, there, apart=True) <= limits[there]
        sure[here[close]] = True
        found[part] = sure
    return found


def labels(rows: Vector, classifier: Vector) -> NDArray[np.int64]:
    """[n] the class of the largest score; ``classifier`` [C, d + 1] on directions, and a bias.

    Of equal ones the first.
    """
    weight, bias = classifier[:, :-1], classifier[:, -1]
    rough = rows @ weight.T + bias
    margin = _MARGIN * (1.0 + float(np.max(np.linalg.norm(weight, axis=1) + np.abs(bias))))
    close = rough >= rough.max(axis=1, keepdims=True) - margin
    said = np.asarray(rough.argmax(axis=1), np.int64)
    unclear = np.flatnonzero(close.sum(axis=1) > 1)
    here, there = np.nonzero(close[unclear])
    scores = np.full((len(unclear), len(bias)), -np.inf)
    scores[here, there] = _of_pairs(rows[unclear], here, weight, there, apart=False) + bias[there]
    said[unclear] = scores.argmax(axis=1)
    return said
