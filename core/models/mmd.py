"""How far labelled rows lie from a run's released MMD targets: free, for it reads releases only.

Squared maximum mean discrepancy per class under the random-feature kernel of
``core.models.features``, weighted by class frequency; what the targets' own noise adds on average
is taken off, so the estimate can fall below zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.features import fourier_features, frequencies
from core.models.frame import Frame


def released_mmd(
    spec: RunSpec, frame: Frame, x: NDArray[np.floating], y: NDArray[np.integer]
) -> float:
    """Estimate for rows x [n, d] of any length with class ids y [n]; absent classes do not count.

    Raises ``ValueError`` if the run released no features, or for no rows.
    """
    if not frame.targets.size:
        raise ValueError("this run released no features: its plan has sketch.feature_weight = 0")
    if len(x) == 0:
        raise ValueError("no rows to compare with the targets")
    wide = np.asarray(x, np.float64)
    features = fourier_features(
        wide / np.linalg.norm(wide, axis=1, keepdims=True), frequencies(spec)
    )
    total, weight = 0.0, 0.0
    for label in np.unique(y):
        mine = features[y == label]
        gap = float(np.sum((mine.mean(axis=0) - frame.targets[label]) ** 2))
        noise = frame.targets.shape[1] * float(frame.target_variance[label])
        # Unit features: the mean of n of them has variance (1 - |mean|^2) / n in all.
        sampling = (1.0 - float(np.sum(mine.mean(axis=0) ** 2))) / max(len(mine) - 1, 1)
        total += float(frame.class_probs[label]) * (gap - noise - sampling)
        weight += float(frame.class_probs[label])
    return total / weight
