"""Step 1 of the sketch: what a site says about its classes before any training.

For one unit u: s_u = sum over its records of [w1 e_y ; w2 e_y (x) x/|x|], clipped to S =
sqrt(w1^2 + w2^2). One record has norm exactly S, so a unit of one record is never shortened.

Sensitivity: S in L2, for adding or removing one unit. The blocks use x/|x|, never the sqrt(d)
scaling of the model, which would multiply the sensitivity. The released count is of clipped unit
weight, not of records. Absent classes and empty sites release noise around zero like all others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.privacy.mechanism import sensitivity


def clipped_sketch(spec: RunSpec, dataset: EmbeddingDataset) -> NDArray[np.float64]:
    """Sum over units of their clipped sketch vectors, [C + C * d] float64. NOT noised."""
    classes, dim = len(spec.space.classes), spec.space.dim
    weights, bound = spec.plan.sketch, sensitivity(spec, 0)
    records = np.flatnonzero(dataset.valid)
    factors = np.ones(len(dataset.unit_ids))
    several = np.bincount(dataset.unit_of[records], minlength=len(factors)) > 1
    for unit in np.flatnonzero(several):
        mine = records[dataset.unit_of[records] == unit]
        vector = _sum(dataset, mine, np.ones(len(mine)), classes, dim)
        counts, sums = vector[:classes], vector[classes:]
        norm = np.hypot(
            weights.count_weight * np.linalg.norm(counts),
            weights.mean_weight * np.linalg.norm(sums),
        )
        factors[unit] = min(1.0, bound / norm)
    total = _sum(dataset, records, factors[dataset.unit_of[records]], classes, dim)
    total[:classes] *= weights.count_weight
    total[classes:] *= weights.mean_weight
    return total


def _sum(
    dataset: EmbeddingDataset,
    records: NDArray[np.int64],
    factors: NDArray[np.float64],
    classes: int,
    dim: int,
) -> NDArray[np.float64]:
    """[C + C * d]: weighted counts and sums of directions, by class."""
    labels = dataset.y[records]
    counts = np.bincount(labels, weights=factors, minlength=classes)
    sums = np.zeros((classes, dim))
    for label in np.unique(labels):
        mine = labels == label
        sums[label] = factors[mine] @ dataset.directions[records[mine]]
    return np.concatenate([counts, sums.ravel()])
