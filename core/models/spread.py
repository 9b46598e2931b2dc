"""The frame after step 2 of the sketch: better means, and spread along released directions.

The released sum of clipped second moments is the truth plus a symmetric Gaussian matrix of known
scale. Its eigenvalues beyond the noise's edge are kept and shrunk by the optimal rule for spiked
Wigner matrices (Frobenius loss; Gavish and Donoho 2017), the rest become isotropic, and the whole
keeps the trace that unit-length directions must have. Post-processing of releases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models import symmetric
from core.models.build import from_evidence, residual_basis
from core.models.evidence import Evidence, clipped_share, refined, split_spread
from core.models.frame import Frame
from core.privacy.mechanism import sensitivity

Vector = NDArray[np.float64]
_FIXED_POINT_STEPS = 20
_LEAST_TRACE = 1e-3
_LEAST_BULK = 0.05  # public floor of the isotropic part, as a share of the mean eigenvalue


def with_spread(
    spec: RunSpec,
    frame: Frame,
    evidence: Evidence,
    releases: Sequence[Vector],
    client_ids: Sequence[str],
) -> Frame:
    """The frame from step 2's released vectors, one of each of ``client_ids``.

    ``evidence`` is what ``frame`` was built from. The denominator of the moments is the noised
    number of units of those who answered.
    """
    centre = frame.base / math.sqrt(spec.space.dim)
    parts = split_spread(spec, releases)
    positions = [frame.client_ids.index(client) for client in client_ids]
    after = frame
    if "sums" in parts[0]:
        answers = {p: part["sums"] for p, part in zip(positions, parts, strict=True)}
        evidence = refined(spec, evidence, centre, answers)
        after = from_evidence(spec, evidence, frame.client_ids, frame.clients)
    if "moments" not in parts[0]:
        return after
    moments = np.sum([part["moments"] for part in parts], axis=0)
    units = float(sum(frame.sizes[p] for p in positions))
    return _along(spec, after, centre, moments / units, math.sqrt(len(parts)) / units)


def _along(spec: RunSpec, frame: Frame, centre: Vector, mean: Vector, noise_share: float) -> Frame:
    """``frame`` with factors from the mean released moments [d (d + 1) / 2] around ``centre``.

    ``noise_share``: the noise of a coordinate of ``mean`` over that of one release.
    """
    dim = spec.space.dim
    unit = spec.plan.sketch.residual_radius**2 / math.sqrt(1.0 - spec.plan.privacy.refinement)
    noise_std = unit * spec.event(1).noise_multiplier * sensitivity(spec, 1) * noise_share
    # An off-diagonal entry carries 1/sqrt(2) of its packed coordinate's noise.
    entry_std = noise_std / math.sqrt(2.0)
    matrix = unit * symmetric.unpack(mean, dim)
    # Clipping shortened long residuals; the true trace is known from the means.
    around = max(1.0 - float(frame.class_probs @ np.sum(centre**2, axis=1)), _LEAST_TRACE)
    stretch = around / max(float(np.trace(matrix)), 0.2 * around)
    # Moments were taken around the means of step 1; better ones are known by now.
    moved = (centre - frame.base / math.sqrt(dim)) * clipped_share(spec, centre)[:, None]
    matrix = stretch * (matrix - (moved.T * frame.class_probs) @ moved)
    values, vectors = np.linalg.eigh(matrix)
    total = float(frame.scale[0]) ** 2  # what the pooled means leave of the length 1
    kept, bulk = shrunk_spectrum(values, total, stretch * entry_std * math.sqrt(dim))
    keep = kept > 0
    factors = np.sqrt(kept[keep])[:, None] * vectors[:, keep].T
    factors = factors[np.argsort(-kept[keep], kind="stable")]
    leading = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    root = math.sqrt(dim)
    return replace(
        frame,
        scale=np.array([math.sqrt(bulk * dim)]),
        factors=root * factors,
        basis=residual_basis(spec, frame.basis, leading),
    )


def shrunk_spectrum(values: Vector, total: float, edge: float) -> tuple[Vector, float]:
    """(signal eigenvalues above the bulk [d], zero where noise explains them; bulk eigenvalue).

    ``edge`` is sigma sqrt(d) for entries of standard deviation sigma: eigenvalues of pure noise
    lie within 2 edge. ``total`` is the trace that signal and bulk share.
    """
    dim = len(values)
    bulk = total / dim
    kept = np.zeros(dim)
    for _ in range(_FIXED_POINT_STEPS):
        above = values - bulk
        kept = np.sqrt(np.maximum(above**2 - 4.0 * edge**2, 0.0))
        kept[above <= 2.0 * edge] = 0.0
        kept *= min(1.0, (1.0 - _LEAST_BULK) * total / max(float(kept.sum()), 1e-300))
        bulk = (total - float(kept.sum())) / dim
    return kept, bulk
