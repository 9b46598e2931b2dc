"""Step 1 of the sketch: what a site says about its classes before any training.

For one unit u: s_u = the mean over its records of [w1 e_y ; w2 e_y (x) x/|x|]. One record's vector
has norm S = sqrt(w1^2 + w2^2), so a mean of such vectors has norm at most S: nothing is clipped,
and the counts are of UNITS (a patient of two classes is half a unit of each).

Sensitivity: S in L2, for adding or removing one unit. The blocks use x/|x|, never the sqrt(d)
scaling of the model, which would multiply the sensitivity. Absent classes and empty sites release
noise around zero like all others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec


def clipped_sketch(spec: RunSpec, dataset: EmbeddingDataset) -> NDArray[np.float64]:
    """Sum over units of their sketch vectors, [C + C * d] float64. NOT noised."""
    weights = spec.plan.sketch
    rows, shares = record_shares(dataset)
    classes = len(spec.space.classes)
    labels = dataset.y[rows]
    counts = np.bincount(labels, weights=shares, minlength=classes)
    sums = class_sums(dataset.directions[rows], labels, shares, classes)
    return np.concatenate([weights.count_weight * counts, weights.mean_weight * sums.ravel()])


def record_shares(dataset: EmbeddingDataset) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of valid records [n] and, of each, 1 over the number of its unit's valid records."""
    rows = np.flatnonzero(dataset.valid)
    units = dataset.unit_of[rows]
    sizes = np.bincount(units, minlength=len(dataset.unit_ids))
    return rows, 1.0 / sizes[units]


def class_sums(
    vectors: NDArray[np.float64],
    labels: NDArray[np.int64],
    shares: NDArray[np.float64],
    classes: int,
) -> NDArray[np.float64]:
    """[C, d]: sums over records of share times vector, by class."""
    sums = np.zeros((classes, vectors.shape[1]))
    for label in np.unique(labels):
        mine = labels == label
        sums[label] = shares[mine] @ vectors[mine]
    return sums
