"""Step 1 of the sketch: what a site says about its classes before any training.

For one unit u: s_u = the mean over its records of

    [w1 e_y ; w2 e_y (x) x ; w3 vech2(p p^T) / R^2 ; w4 e_y (x) psi(x)],    |x| = 1,

p = P x clipped to length R for public directions P, psi random Fourier features of length 1; w3
and w4 are 0 unless the plan says otherwise. No block of a record is longer than its weight, so its
vector has norm at most S = |w| and so has a mean of them: the counts are of UNITS (a patient of two
classes is half a unit of each).

Sensitivity: S in L2, for adding or removing one unit. The blocks use x/|x|, never the sqrt(d)
scaling of the model, which would multiply the sensitivity. Absent classes and empty sites release
noise around zero like all others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models import symmetric
from core.models.features import fourier_features, frequencies, projection


def clipped_sketch(spec: RunSpec, dataset: EmbeddingDataset) -> NDArray[np.float64]:
    """Sum over units of their vectors [P of ``sketch_layout``] float64. NOT noised."""
    weights = spec.plan.sketch
    rows, shares = record_shares(dataset)
    classes = len(spec.space.classes)
    labels = dataset.y[rows]
    counts = np.bincount(labels, weights=shares, minlength=classes)
    directions = dataset.directions[rows]
    sums = class_sums(directions, labels, shares, classes)
    parts = [weights.count_weight * counts, weights.mean_weight * sums.ravel()]
    if weights.projected_weight > 0.0:
        inside = directions @ projection(spec).T
        lengths = np.linalg.norm(inside, axis=1, keepdims=True)
        inside *= np.sqrt(shares)[:, None] / np.maximum(lengths, weights.projected_radius)
        parts.append(weights.projected_weight * symmetric.pack(inside.T @ inside))
    if weights.feature_weight > 0.0:
        features = fourier_features(directions, frequencies(spec))
        parts.append(weights.feature_weight * class_sums(features, labels, shares, classes).ravel())
    return np.concatenate(parts)


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
