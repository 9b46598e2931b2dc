"""From released sketches to a frame. Post-processing, hence free; no estimate sees a record.

Sketches speak of directions x/|x|; the model works on sqrt(d) x/|x|, so lengths are multiplied by
sqrt(d) at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.estimates import pooled_means, site_deviations
from core.models.evidence import Evidence, from_sketches
from core.models.factors import contrast_basis, with_factors
from core.models.features import projection
from core.models.frame import Frame
from core.models.public import Purpose, stream

Vector = NDArray[np.float64]

_RIDGE = 1e-6  # relative to the codes' energy: only keeps the solve well posed
_MIN_SCALE = 0.05  # public floor of the residual scale (in units of a coordinate's scale, 1)


def build(
    spec: RunSpec,
    sketches: Sequence[Vector],
    client_ids: Sequence[str],
    clients: Sequence[str],
    noise_gain: float = 1.0,
) -> Frame:
    """The frame of a run from its released sketches [C + C * d] each, in a fixed client order.

    ``noise_gain``: the noise in each, in terms of what the sketch's event promises.
    """
    evidence = from_sketches(spec, sketches, spec.noise.sketch_multiplier * noise_gain)
    return from_evidence(spec, evidence, client_ids, clients)


def from_evidence(
    spec: RunSpec, evidence: Evidence, client_ids: Sequence[str], clients: Sequence[str]
) -> Frame:
    """The frame of class statistics; it spreads alike in all but the plan's public directions."""
    dim = spec.space.dim
    means, grand = pooled_means(evidence)
    shifts, deviations = site_deviations(evidence, means)
    class_probs = evidence.class_counts / evidence.class_counts.sum()
    projected = project(spec, evidence)
    offset = projected.mean(axis=0)
    length = math.sqrt(float(np.mean(np.sum((projected - offset) ** 2, axis=1))))
    # One public factor: the codes' root mean square length is sqrt(c).
    code_scale = math.sqrt(projected.shape[1]) / length if length > 1e-12 else 1.0
    codes = code_scale * (projected - offset)
    # |x|^2 = 1 for every direction, so what the means do not explain is spread: no query needed.
    explained = float(class_probs @ np.sum(means**2, axis=1))
    scale = math.sqrt(max(1.0 - explained, _MIN_SCALE**2))
    root = math.sqrt(dim)
    frame = Frame(
        base=root * means,
        directions=root * np.tensordot(to_clients(codes), deviations, axes=1),
        basis=contrast_basis(spec, means - grand, shifts, class_probs),
        scale=np.array([scale]),
        factors=np.zeros((0, dim)),
        factor_directions=np.zeros((codes.shape[1], 0)),
        targets=evidence.features.sum(axis=0) / evidence.class_counts[:, None],
        target_variance=len(codes) * (evidence.feature_sd / evidence.class_counts) ** 2,
        codes=codes,
        code_offset=offset,
        code_scale=np.array([code_scale]),
        class_probs=class_probs,
        sizes=evidence.sizes,
        client_ids=tuple(client_ids),
        clients=tuple(clients),
    )
    return _in_public_directions(spec, frame, evidence)


def to_clients(codes: Vector) -> Vector:
    """[c, M] W with codes [M, c] W = I, or the ridge solution where there are more clients.

    What clients have of their own [M, ...] becomes linear in codes: a blend of codes blends it,
    and the neutral code has none of it.
    """
    gram = codes @ codes.T
    ridge = _RIDGE * max(float(np.trace(gram)), 1.0)
    return np.asarray(codes.T @ np.linalg.inv(gram + ridge * np.eye(len(codes))))


def project(spec: RunSpec, evidence: Evidence) -> Vector:
    """A f [M, c]: class counts and sums over the number of units, under a public random A.

    The code of a site is ``code_scale`` times the difference to ``code_offset``, the mean over
    the sites of the run: 0 is the average site.
    """
    sums = evidence.sums_about(np.zeros_like(evidence.centre)).reshape(len(evidence.counts), -1)
    features = np.concatenate([evidence.counts, sums], axis=1) / evidence.sizes[:, None]
    width = spec.plan.model.code_dim
    shape = (width, features.shape[1])
    a = stream(spec, Purpose.CODES).normal(0.0, 1.0 / math.sqrt(width), shape)
    return np.asarray(features @ a.T)


def _in_public_directions(spec: RunSpec, frame: Frame, evidence: Evidence) -> Frame:
    """``frame`` with factors from the sketch's second moment in public directions, if it has one.

    It is of whole directions x: what the class means explain of it is taken off.
    """
    if not evidence.projected.size:
        return frame
    rows = projection(spec)
    units = float(evidence.sizes.sum())
    means = (frame.base / math.sqrt(spec.space.dim)) @ rows.T
    matrix = evidence.projected.sum(axis=0) / units - (means.T * frame.class_probs) @ means
    entry_std = evidence.projected_sd * math.sqrt(len(evidence.projected)) / units
    # Of a random part of the coordinates we know the trace only as it was released.
    share = float(frame.scale[0]) ** 2
    trace = min(max(float(np.trace(matrix)), share * len(rows) / spec.space.dim), share)
    return with_factors(spec, frame, matrix, entry_std, trace, rows)
