"""Clip, sum, noise: the Gaussian mechanism over one site's privacy units.

Neighbouring relation: add or remove one unit. Sensitivity: each unit adds a vector of L2 norm at
most C to the sum, hence L2 sensitivity C; the release is sum + N(0, (z C)^2 I) with noise
multiplier z. This holds for ANY per-unit vector as long as it depends on nothing but that unit,
released values and the unit's own secret stream; the callers are written, and fuzzed, so.

Floating point: with ``privacy.noise`` "continuous" the noise is float64 Gaussian rounded to
float32, not a discrete mechanism; the gap (Mironov 2012) is documented in docs/privacy.md. With
"discrete" it is exact on a public grid (``release_grid``): the release is a whole number of steps,
drawn from random bits, and N(0, (z C)^2) covers it (theorem 1 of docs/discrete-noise.md). Its
conversion to float32 is post-processing.

Edge cases of one unit's vector g:

==================  ==========================================================
g                   contribution
==================  ==========================================================
norm 0              0
norm <= C           g
norm > C            g * C / norm, rounded towards zero
NaN or infinity     0 (and counted in the site's own log)
no units at all     the sum is 0; noise is drawn as always
==================  ==========================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import PrivacyPlan, RunSpec
from core.models.architecture import architecture_of
from core.models.layout import layout_of
from core.privacy.clipping import JOINT, ClipRule
from core.privacy.discrete import lattice
from core.privacy.discrete.lattice import Lattice
from core.privacy.noise import NoiseSource

_ROUNDING = 2.0**-40  # of a float64 square root and quotient, and more


def clip_rows(vectors: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    """Rows [U, P] with L2 norm at most ``clip_norm`` each; rows that are not finite become 0."""
    return clip_parts(vectors, np.full(vectors.shape[1], JOINT), ClipRule(clip_norm))


def _scaled(
    rows: NDArray[np.float64], factors: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Finite rows [U, P] times the ``factors`` [U] of their norms [U]."""
    safe = np.array(rows)
    scale = np.max(np.abs(safe), axis=1, initial=0.0, keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    # Dividing by the largest entry first: squares of huge finite entries cannot overflow.
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(safe / scale, axis=1) * scale[:, 0]
        # A norm beyond float64 belongs to finite entries: such a row is scaled in two steps.
        huge = ~np.isfinite(norms)
    safe[huge] /= scale[huge]
    norms[huge] = np.linalg.norm(safe[huge], axis=1)
    return np.asarray(safe * factors(norms)[:, None])


def clip_parts(
    vectors: NDArray[np.float64], groups: NDArray[np.str_], rule: ClipRule
) -> NDArray[np.float64]:
    """Rows [U, P] clipped part by part; ``groups`` [P] names each coordinate's group of blocks.

    Rows that are not finite become 0. For gradients that were written out: the slow reference of
    ``core.privacy.ghost``.
    """
    out = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0.0)
    parts = np.array([rule.part(group) for group in groups.tolist()])
    for part in set(parts.tolist()):
        mine = parts == part
        out[:, mine] = _scaled(out[:, mine], partial(rule.factors, part))
    return out


def clip_rule(privacy: PrivacyPlan) -> ClipRule:
    """How a plan clips the gradients of its training rounds."""
    gamma = privacy.automatic_gamma if privacy.clipping == "automatic" else None
    blocks = {**privacy.block_clip_norms.given, "classifier": privacy.classifier_clip_norm}
    return ClipRule(privacy.clip_norm, blocks, gamma)


def sensitivity(spec: RunSpec, round_number: int) -> float:
    """L2 sensitivity of a round's sum for one added or removed unit.

    Sketch, also of who joins: S, the root of the sum of squared block weights: no record's vector
    is longer, and a unit adds the mean over its records. Spread: 1, for a residual r of length at
    most R adds [sqrt(a) e_y (x) r / R ; sqrt(1 - a) vech2(r r^T) / R^2]. Training, of each local
    step: the root of the sum of squared clip norms over the parts that are clipped apart; C if
    there is one. Validation: 1, for a unit adds its mean of J entries of at most 1 / sqrt(J).
    Report: 1, for a unit fills the blocks of its part only, whose weights have norm 1.
    """
    match spec.kind(round_number):
        case "sketch" | "join":
            return spec.plan.sketch.bound
        case "spread" | "validate" | "report":
            return 1.0
        case "train":
            return clip_rule(spec.plan.privacy).sensitivity(architecture_of(spec).groups)


def release_grid(spec: RunSpec, round_number: int, sites: int = 1) -> Lattice | None:
    """The grid of a plain release (of each local step), or None where noise is continuous.

    Its one contribution carries all the noise. ``sites``: how many sites' sums the noised one is
    the sum of, in simulations. Raises ``ValueError`` where no grid fits.
    """
    if spec.plan.privacy.noise != "discrete":
        return None
    bound = sensitivity(spec, round_number)
    return lattice.design(
        bound=bound,
        length=layout_of(spec, round_number).update_length,
        noise_multiplier=spec.event(round_number).noise_multiplier,
        shares=1,
        contributions=1,
        largest=sites * spec.plan.privacy.n_max * bound,
    )


def noised(
    total: NDArray[np.float64],
    *,
    null_coordinates: int,
    noise_multiplier: float,
    bound: float,
    noise: NoiseSource,
    grid: Lattice | None = None,
) -> NDArray[np.float32]:
    """``total`` [P] with zeros [null] appended, plus N(0, (noise_multiplier * bound)^2) on all; on
    a ``grid`` (of ``release_grid``) as whole steps of it, which hide as much.

    ``total`` must have L2 sensitivity ``bound``. Nothing un-noised is returned. Raises
    ``ValueError`` for a grid that promises less than ``noise_multiplier``.
    """
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise ValueError("a release needs a positive, finite noise multiplier")
    if not np.isfinite(total).all():
        raise ValueError("the clipped sum is not finite")  # impossible after clip_factors
    padded = np.concatenate([total, np.zeros(null_coordinates)])
    if grid is not None:
        if grid.shares != 1 or grid.noise_multiplier < noise_multiplier * (1.0 - _ROUNDING):
            raise ValueError("the grid's one contribution does not carry the promised noise")
        steps = lattice.released(padded, grid, noise.bits())
        # Of a step that is a power of two, float32 values are whole multiples, too.
        return np.asarray(steps * grid.step, np.float32)
    return np.asarray(padded + noise.normal(padded.size, noise_multiplier * bound), np.float32)
