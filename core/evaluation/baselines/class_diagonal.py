"""DP per-class diagonal Gaussian: counts, means, and variances by class. Simulation only.

One release per site. For one unit: the sum over its records of
e_y (x) [w1 ; w2 x/|x| ; w3 clip(q, R)/R], q = (x/|x|)^2 - 1/d entry by entry, clipped jointly to
S = sqrt(w1^2 + w2^2 + w3^2). The class histogram is part of the noised vector: an exact one would
be a release without noise.

Privacy: per site one Gaussian event, add or remove one unit, sensitivity S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.baselines.common import (
    TRUSTED_SDS,
    EventsBySite,
    Terms,
    calibrated,
    clipped_class_sums,
    gaussian,
    known,
    noise_std,
    on_sphere,
    released_sum,
)
from core.federation.plan import EmbeddingSpace
from core.models.shrinkage import james_stein
from core.privacy.noise import NoiseSource

# Fixed in advance: the first two as in the method's sketch, the variances half of the means.
WEIGHTS = (0.3, 1.0, 0.5)
BOUND = math.sqrt(sum(w**2 for w in WEIGHTS))

_LEAST_VARIANCE = 0.05  # public floor of a coordinate's variance, as a share of the class's mean


@dataclass(frozen=True, eq=False)
class ClassDiagonal:
    """``means`` and ``variances`` [C, d] of directions, class ``probs`` [C]."""

    means: NDArray[np.float64]
    variances: NDArray[np.float64]
    probs: NDArray[np.float64]
    events: EventsBySite
    private: bool = True

    def sample(self, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``n`` rows x [n, d] on the sphere of radius sqrt(d) and labels [n]."""
        draw = np.random.default_rng(seed)
        y = draw.choice(len(self.probs), size=n, p=self.probs).astype(np.int64)
        x = self.means[y] + np.sqrt(self.variances[y]) * draw.normal(size=(n, self.means.shape[1]))
        return on_sphere(x), y


def radius(dim: int) -> float:
    """R: twice the length of q for a direction drawn at random, sqrt(2 / d)."""
    return 2.0 * math.sqrt(2.0 / dim)


def clipped_moments(site: EmbeddingDataset, classes: int) -> NDArray[np.float64]:
    """[C * (1 + 2 d)] the query of the module's docstring. NOT noised. Sensitivity ``BOUND``."""
    dim = site.x.shape[1]
    limit = radius(dim)
    count, mean, second = WEIGHTS

    def features(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        x = site.directions[rows]
        q = x**2 - 1.0 / dim
        q /= np.maximum(np.linalg.norm(q, axis=1, keepdims=True), limit)
        return np.concatenate([np.full((len(x), 1), count), mean * x, second * q], axis=1)

    return clipped_class_sums(
        site, features, classes=classes, width=1 + 2 * dim, bound=BOUND
    ).ravel()


def class_diagonal(
    sites: Sequence[EmbeddingDataset], space: EmbeddingSpace, terms: Terms, noise: NoiseSource
) -> ClassDiagonal:
    """Release and pool the moments of ``sites`` at ``terms``."""
    classes, dim = len(space.classes), space.dim
    z, events = calibrated(terms, lambda s: [gaussian(s, terms.unit)])
    total = released_sum(
        [clipped_moments(known(site, classes), classes) for site in sites],
        z=z, bound=BOUND, mode=terms.noise_mode, noise=noise,
    ).reshape(classes, 1 + 2 * dim)  # fmt: skip
    std = noise_std(z, BOUND, len(sites), terms.noise_mode)
    count_weight, mean_weight, second_weight = WEIGHTS
    counts = np.maximum(total[:, 0] / count_weight, max(1.0, TRUSTED_SDS * std / count_weight))
    means = total[:, 1 : 1 + dim] / mean_weight / counts[:, None]
    moments = total[:, 1 + dim :] * radius(dim) / second_weight / counts[:, None] + 1.0 / dim
    mean_noise = (std / mean_weight / counts) ** 2
    moment_noise = (std * radius(dim) / second_weight / counts) ** 2
    variances = np.empty_like(means)
    for c in range(classes):
        # Directions have length 1: what the mean does not explain is spread, without any query.
        length = max(float(np.sum(means[c] ** 2)) - dim * mean_noise[c], 0.0)
        average = max(1.0 - length, 0.01) / dim
        # E x^2 = var + mean^2; the noise in mean^2 is known on average and taken off.
        raw = moments[c] - means[c] ** 2 + mean_noise[c]
        noise_variance = float(moment_noise[c] + 4.0 * mean_noise[c] * (length / dim))
        spread = james_stein(raw, np.full(dim, average), noise_variance + 2.0 * mean_noise[c] ** 2)
        spread = np.maximum(spread, _LEAST_VARIANCE * average)
        variances[c] = spread * (average * dim / spread.sum())
    return ClassDiagonal(means, variances, counts / counts.sum(), (events,) * len(sites))
