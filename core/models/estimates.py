"""Class means and how sites deviate from them, shrunk by what is known of the noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.models import shrinkage
from core.models.evidence import Evidence

Vector = NDArray[np.float64]


def pooled_means(evidence: Evidence) -> tuple[Vector, Vector]:
    """Class means [C, d] of all sites, shrunk to the grand mean [d], and the grand mean."""
    class_counts = evidence.class_counts
    weights = class_counts / class_counts.sum()
    raw = evidence.centre + evidence.sums.sum(axis=0) / class_counts[:, None]
    grand = weights @ raw
    contrasts = raw - grand
    variances = np.sum(evidence.sum_sd**2, axis=0) / class_counts**2
    # A contrast shares the grand mean's noise: var - 2 cov + the grand mean's own.
    variances = variances * (1.0 - 2.0 * weights) + float(weights**2 @ variances)
    means = grand + shrinkage.related(contrasts, variances)[:, None] * contrasts
    # A mean of directions cannot be longer than 1; noise can make it so.
    means /= np.maximum(1.0, np.linalg.norm(means, axis=1, keepdims=True))
    return np.asarray(means), np.asarray(grand)


def site_deviations(evidence: Evidence, means: Vector) -> tuple[Vector, Vector]:
    """Per client a common shift [M, d] and, with it, each class's deviation [M, C, d].

    The common shift averages over all classes and is therefore estimated with much less noise;
    what remains per class is kept only where it stands above its own noise.
    """
    sizes, cells = evidence.sizes, evidence.cells
    unexplained = evidence.sums_about(means)
    shifts = unexplained.sum(axis=1) / sizes[:, None]
    shifts *= shrinkage.separate(shifts, np.sum(evidence.sum_sd**2, axis=1) / sizes**2)[:, None]
    own = unexplained / cells[:, :, None] - shifts[:, None, :]
    variances = (evidence.sum_sd / cells) ** 2
    kept = shrinkage.separate(own.reshape(-1, own.shape[2]), variances.ravel())
    return shifts, shifts[:, None, :] + kept.reshape(cells.shape)[:, :, None] * own
