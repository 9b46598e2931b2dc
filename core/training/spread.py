"""Step 2 of the sketch: how records lie around the means that step 1 released.

For one unit u: the mean over its records of [sqrt(a) e_y (x) r / R ; sqrt(1 - a) vech2(r r^T) /
R^2], r = x/|x| - mean clipped to length R, a the plan's ``refine_share``. The means are the
RELEASED pooled ones, so r depends on the record and on released values only. (A site's own means
are noisier than its share of the pool is wrong: residuals around them gave 1 to 2 points less on
scanner digits, under every code.)

Sensitivity: 1 in L2, for adding or removing one unit: each record's vector has norm at most 1, and
so has a mean of them. Residuals are shorter than records, which is why a second, adaptive step
needs less noise, for the second moment and for the means themselves.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models import symmetric
from core.models.frame import Frame
from core.training.sketch import class_sums, record_shares


def clipped_spread(spec: RunSpec, dataset: EmbeddingDataset, frame: Frame) -> NDArray[np.float64]:
    """Sum over units of their vectors [P of ``spread_layout``]. NOT noised."""
    radius, refinement = spec.plan.sketch.residual_radius, spec.plan.privacy.refinement
    means = frame.base / np.sqrt(spec.space.dim)
    rows, shares = record_shares(dataset)
    labels = dataset.y[rows]
    residuals = dataset.directions[rows] - means[labels]
    lengths = np.linalg.norm(residuals, axis=1, keepdims=True)
    residuals /= np.maximum(lengths, radius)
    parts = []
    if refinement > 0.0:
        sums = class_sums(residuals, labels, shares, len(spec.space.classes))
        parts.append(math.sqrt(refinement) * sums.ravel())
    if refinement < 1.0:
        weighted = residuals * np.sqrt(shares)[:, None]
        parts.append(math.sqrt(1.0 - refinement) * symmetric.pack(weighted.T @ weighted))
    return np.concatenate(parts)
