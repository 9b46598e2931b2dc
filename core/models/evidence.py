"""What the released sketches say about every client's classes, with the noise that they carry.

Two rounds measure the same class sums: the sketch itself, and then sums of residuals around the
pooled means that the sketch gave. Both are unbiased with independent noise, so they are combined
by their precisions. Post-processing of releases throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models import symmetric
from core.models.layout import sketch_layout, spread_layout
from core.privacy.mechanism import sensitivity

Vector = NDArray[np.float64]

# A count below this many standard deviations of its own noise is not trusted as a denominator.
TRUSTED_SDS = 2.0
_LEAST_RESIDUAL = 0.1  # public floor of a residual's root mean square length


@dataclass(frozen=True, eq=False)
class Evidence:
    """Released class statistics of M clients, of directions x/|x|.

    ``counts`` [M, C] of units, noise of sd ``count_sd``; ``sums`` [M, C, d] of x/|x| - centre,
    noise of sd ``sum_sd`` [M, C] per coordinate; ``centre`` [C, d] released means (0 at first).
    ``projected`` [M, r, r] sums of clipped second moments in public directions, off-diagonal noise
    of sd ``projected_sd``; ``features`` [M, C, f] sums, noise of sd ``feature_sd``. r and f are 0
    where a plan gives these no weight.
    """

    counts: Vector
    count_sd: float
    sums: Vector
    sum_sd: Vector
    centre: Vector
    projected: Vector
    projected_sd: float
    features: Vector
    feature_sd: float

    @property
    def class_counts(self) -> Vector:
        """[C] pooled counts, never below what their noise explains."""
        floor = TRUSTED_SDS * self.count_sd * math.sqrt(len(self.counts))
        return np.asarray(np.maximum(self.counts.sum(axis=0), max(1.0, floor)))

    @property
    def sizes(self) -> Vector:
        """[M] units of each client, never below what their noise explains."""
        floor = TRUSTED_SDS * self.count_sd * math.sqrt(self.counts.shape[1])
        return np.asarray(np.maximum(self.counts.sum(axis=1), max(1.0, floor)))

    @property
    def cells(self) -> Vector:
        """[M, C] units of each client and class, never below what their noise explains."""
        return np.asarray(np.maximum(self.counts, max(1.0, TRUSTED_SDS * self.count_sd)))

    def sums_about(self, means: Vector) -> Vector:
        """[M, C, d] sums of x/|x| - means [C, d]."""
        moved = np.maximum(self.counts, 0.0)[:, :, None] * (means - self.centre)
        return np.asarray(self.sums - moved)


def from_sketches(
    spec: RunSpec, sketches: Sequence[Vector], noise_multiplier: float | None = None
) -> Evidence:
    """Evidence of released sketches [P] each, by default those of the first round."""
    weights = spec.plan.sketch
    multiplier = spec.noise.sketch_multiplier if noise_multiplier is None else noise_multiplier
    noise_std = multiplier * sensitivity(spec, 0)
    parts = [sketch_layout(spec).split(sketch) for sketch in sketches]

    def block(name: str, weight: float) -> Vector:
        return np.stack([np.asarray(part[name], np.float64) / weight for part in parts])

    counts = block("counts", weights.count_weight)
    sums = block("sums", weights.mean_weight)
    clients, classes, dim = sums.shape
    projected, projected_sd = np.zeros((clients, 0, 0)), 0.0
    if weights.projected_weight > 0.0:
        scale = weights.projected_radius**2 / weights.projected_weight
        rank = min(weights.projected_rank, dim)
        packed = block("projected", 1.0)
        projected = scale * np.stack([symmetric.unpack(one, rank) for one in packed])
        projected_sd = scale * noise_std / math.sqrt(2.0)
    features, feature_sd = np.zeros((clients, classes, 0)), 0.0
    if weights.feature_weight > 0.0:
        features = block("features", weights.feature_weight)
        feature_sd = noise_std / weights.feature_weight
    return Evidence(
        counts=counts,
        count_sd=noise_std / weights.count_weight,
        sums=sums,
        sum_sd=np.full(counts.shape, noise_std / weights.mean_weight),
        centre=np.zeros((classes, dim)),
        projected=projected,
        projected_sd=projected_sd,
        features=features,
        feature_sd=feature_sd,
    )


def refined(
    spec: RunSpec,
    evidence: Evidence,
    means: Vector,
    residual_sums: Mapping[int, Vector],
    noise_gain: float = 1.0,
) -> Evidence:
    """The evidence after step 2, about the ``means`` [C, d] that residuals were taken around.

    ``residual_sums`` are released sums [C, d] by client position; a client that did not answer
    keeps its first measurement alone. ``noise_gain``: the noise in each of them, in terms of what
    the event of step 2 promises.
    """
    weight = math.sqrt(spec.plan.privacy.refinement)
    radius = spec.plan.sketch.residual_radius
    noise_std = spec.event(1).noise_multiplier * noise_gain * sensitivity(spec, 1)
    second_sd = noise_std * radius / weight
    kept = clipped_share(spec, means)
    sums = evidence.sums_about(means)
    sum_sd = evidence.sum_sd.copy()
    for client, released in residual_sums.items():
        # Clipping keeps about this share of every residual, hence of their mean.
        second = released * (radius / weight) / kept[:, None]
        second_precision = (kept / second_sd) ** 2
        first_precision = sum_sd[client] ** -2.0
        both = first_precision + second_precision
        sums[client] = (
            first_precision[:, None] * sums[client] + second_precision[:, None] * second
        ) / both[:, None]
        sum_sd[client] = both**-0.5
    return replace(evidence, sums=sums, sum_sd=sum_sd, centre=means)


def clipped_share(spec: RunSpec, means: Vector) -> Vector:
    """[C] what clipping to the radius R leaves of a residual's length.

    |x| = 1, so a residual around the mean m of its class has mean square length 1 - |m|^2, and in
    high dimension hardly any other.
    """
    square = np.maximum(1.0 - np.sum(means**2, axis=1), _LEAST_RESIDUAL**2)
    return np.asarray(np.minimum(1.0, spec.plan.sketch.residual_radius / np.sqrt(square)))


def split_spread(
    spec: RunSpec, positions: Sequence[int], releases: Sequence[Vector]
) -> dict[str, dict[int, Vector]]:
    """Step 2's released vectors by block and client position, in float64."""
    layout = spread_layout(spec)
    found: dict[str, dict[int, Vector]] = {name: {} for name, _ in layout.blocks}
    for position, release in zip(positions, releases, strict=True):
        for name, part in layout.split(release).items():
            found[name][position] = np.asarray(part, np.float64)
    return found
