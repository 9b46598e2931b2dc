"""Step 2 of the sketch: how records spread around the means that step 1 released.

For one unit u: sum over its records of vech2(r r^T), r = x/|x| - mean, clipped to length R; the
sum is clipped to R^2 in Frobenius norm. The means are the RELEASED pooled ones, so r depends on the
record and on released values only. (A site's own means are noisier than its share of the pool is
wrong: residuals around them gave 1 to 2 points less on scanner digits, under every code.)

Sensitivity: R^2 in L2, for adding or removing one unit. Residuals are shorter than records, which
is why a second, adaptive step needs so much less noise than a second moment in one go.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models import symmetric
from core.models.frame import Frame
from core.privacy.mechanism import sensitivity


def clipped_spread(spec: RunSpec, dataset: EmbeddingDataset, frame: Frame) -> NDArray[np.float64]:
    """Sum over units of their clipped second moments, vech2, [d (d + 1) / 2]. NOT noised."""
    radius, bound = spec.plan.sketch.residual_radius, sensitivity(spec, 1)
    means = frame.base / np.sqrt(spec.space.dim)
    rows = np.flatnonzero(dataset.valid)
    residuals = dataset.directions[rows] - means[dataset.y[rows]]
    lengths = np.linalg.norm(residuals, axis=1, keepdims=True)
    residuals *= radius / np.maximum(lengths, radius)
    units = dataset.unit_of[rows]
    factors = np.ones(len(dataset.unit_ids))
    order = np.argsort(units, kind="stable")
    starts = np.searchsorted(units[order], np.arange(len(factors) + 1))
    for unit in np.flatnonzero(np.diff(starts) > 1):
        own = residuals[order[starts[unit] : starts[unit + 1]]]
        # |sum r r^T|_F^2 = sum of squared inner products: no d x d matrix per unit.
        # The larger of norm and bound divides: a unit of zero residuals must not raise.
        factors[unit] = bound / max(float(np.linalg.norm(own @ own.T)), bound)
    weighted = residuals * np.sqrt(factors[units])[:, None]
    return symmetric.pack(weighted.T @ weighted)
