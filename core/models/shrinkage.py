"""How much of a noised difference to keep, when the noise's variance is known.

Vectors [G, d], each the truth plus Gaussian noise of known variance v per coordinate. In high
dimension the squared length alone tells well how much of it is truth: E |x|^2 = |truth|^2 + d v.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_GUARD_SDS = 3.0  # how far above its noise a squared length must stand before anything is kept
_FIXED_POINT_STEPS = 5


def separate(vectors: Vector, variances: Vector) -> Vector:
    """Factors [G] in [0, 1] for vectors that may well be nothing but noise.

    Positive-part James-Stein for each on its own, and zero until the squared length passes what
    noise alone reaches by ``_GUARD_SDS`` standard deviations (it has sd v sqrt(2 d)).
    """
    dim = vectors.shape[1]
    expected = dim * variances * (1.0 + _GUARD_SDS * math.sqrt(2.0 / dim))
    squared = np.sum(vectors**2, axis=1)
    return np.asarray(np.maximum(0.0, 1.0 - expected / np.maximum(squared, 1e-300)))


def related(vectors: Vector, variances: Vector) -> Vector:
    """Factors [G] in [0, 1] for vectors of one kind, such as the contrasts of classes.

    Each has a signal variance t per coordinate, estimated by |x|^2 / d - v; the estimates are
    pulled to their common mean as far as their own errors explain how they scatter (random-effects
    model, DerSimonian and Laird 1986), and the factor is t / (t + v). At heavy noise all vectors
    get nearly the same factor: on its own, one would vanish by chance, and with it a class.
    """
    groups, dim = vectors.shape
    signal = np.sum(vectors**2, axis=1) / dim - variances
    common = 0.0
    for _ in range(_FIXED_POINT_STEPS):
        errors = 2.0 / dim * (variances + max(common, 0.0)) ** 2
        precision = 1.0 / np.maximum(errors, 1e-300)
        common = float(precision @ signal / precision.sum())
    scatter = float(precision @ (signal - common) ** 2)
    scale = float(precision.sum() - (precision**2).sum() / precision.sum())
    between = max(0.0, (scatter - (groups - 1)) / scale) if scale > 0.0 else 0.0
    own = between / np.maximum(between + errors, 1e-300)
    posterior = np.maximum(0.0, common + own * (signal - common))
    return np.asarray(posterior / np.maximum(posterior + variances, 1e-300))


def pooled(vectors: Vector, variances: Vector) -> Vector:
    """Factors [G] in [0, 1] for vectors that share one signal variance t per coordinate.

    t / (t + v), t estimated from all of them together: few numbers a vector would not tell more
    (``related`` lets each have its own). Zeros where noise explains all that there is.
    """
    signal = max(0.0, float(np.mean((vectors**2).mean(axis=1) - variances)))
    if signal == 0.0:
        return np.zeros(len(vectors))
    return np.asarray(signal / (signal + variances))


def james_stein(estimate: Vector, target: Vector, noise_variance: float) -> Vector:
    """Pull ``estimate`` [d] towards ``target`` [d] by the positive-part James-Stein rule.

    Where the distance is no more than noise explains, the result is the target.
    """
    distance = float(np.sum((estimate - target) ** 2))
    if distance <= 0.0:
        return target.copy()
    keep = max(0.0, 1.0 - estimate.size * noise_variance / distance)
    return np.asarray(target + keep * (estimate - target))
