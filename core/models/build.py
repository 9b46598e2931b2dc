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
from core.models.frame import Frame
from core.models.layout import residual_rank

Vector = NDArray[np.float64]

_RIDGE = 1e-6  # relative to the codes' energy: only keeps the solve well posed
_MIN_SCALE = 0.05  # public floor of the residual scale (in units of a coordinate's scale, 1)


def build(
    spec: RunSpec, sketches: Sequence[Vector], client_ids: Sequence[str], clients: Sequence[str]
) -> Frame:
    """The frame of a run from its released sketches [C + C * d] each, in a fixed client order."""
    return from_evidence(spec, from_sketches(spec, sketches), client_ids, clients)


def from_evidence(
    spec: RunSpec, evidence: Evidence, client_ids: Sequence[str], clients: Sequence[str]
) -> Frame:
    """The frame of class statistics; its spread is isotropic."""
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
    gram = codes @ codes.T
    ridge = _RIDGE * max(float(np.trace(gram)), 1.0)
    to_clients = codes.T @ np.linalg.inv(gram + ridge * np.eye(len(codes)))  # [c, M]
    # |x|^2 = 1 for every direction, so what the means do not explain is spread: no query needed.
    explained = float(class_probs @ np.sum(means**2, axis=1))
    scale = math.sqrt(max(1.0 - explained, _MIN_SCALE**2))
    root = math.sqrt(dim)
    return Frame(
        base=root * means,
        directions=root * np.tensordot(to_clients, deviations, axes=1),
        basis=_basis(spec, means - grand, shifts, class_probs),
        scale=np.array([scale]),
        factors=np.zeros((0, dim)),
        codes=codes,
        code_offset=offset,
        code_scale=np.array([code_scale]),
        class_probs=class_probs,
        sizes=evidence.sizes,
        client_ids=tuple(client_ids),
        clients=tuple(clients),
    )


def project(spec: RunSpec, evidence: Evidence) -> Vector:
    """A f [M, c]: class counts and sums over the number of units, under a public random A.

    The code of a site is ``code_scale`` times the difference to ``code_offset``, the mean over
    the sites of the run: 0 is the average site.
    """
    sums = evidence.sums_about(np.zeros_like(evidence.centre)).reshape(len(evidence.counts), -1)
    features = np.concatenate([evidence.counts, sums], axis=1) / evidence.sizes[:, None]
    width = spec.plan.model.code_dim
    generator = np.random.Generator(np.random.Philox(key=spec.plan.seed, counter=[0, 0, 0, 1]))
    projection = generator.normal(0.0, 1.0 / math.sqrt(width), (width, features.shape[1]))
    return np.asarray(features @ projection.T)


def _basis(spec: RunSpec, contrasts: Vector, shifts: Vector, class_probs: Vector) -> Vector:
    """[r, d] orthonormal: class contrasts, then site shifts, then public random directions.

    Residuals matter to a classifier where the classes differ; that is where the few noised
    decoder outputs are spent.
    """
    weighted = contrasts * np.sqrt(class_probs)[:, None]
    leading = np.linalg.svd(weighted, full_matrices=False)[2][: len(contrasts) - 1]
    return _orthonormal([*leading, *shifts, *_public_directions(spec)], residual_rank(spec))


def residual_basis(spec: RunSpec, before: Vector, spread: Vector) -> Vector:
    """[r, d]: what was named before its public part, then directions of spread, then the rest.

    ``before`` is a frame's basis, ``spread`` [k, d] are released directions, widest first.
    """
    named = min(len(before), len(spec.space.classes) - 1)
    return _orthonormal([*before[:named], *spread, *before[named:]], residual_rank(spec))


def _public_directions(spec: RunSpec) -> Vector:
    generator = np.random.Generator(np.random.Philox(key=spec.plan.seed, counter=[0, 0, 0, 2]))
    return np.asarray(generator.normal(size=(residual_rank(spec), spec.space.dim)))


def _orthonormal(candidates: Sequence[Vector], rank: int) -> Vector:
    """The first ``rank`` independent directions of ``candidates``, orthonormal (Gram-Schmidt)."""
    rows = np.zeros((0, len(candidates[0])))
    for row in candidates:
        if len(rows) == rank:
            break
        rest = row - (rows @ row) @ rows
        rest = rest - (rows @ rest) @ rows  # twice is enough
        length = float(np.linalg.norm(rest))
        if length > 1e-9 * max(1.0, float(np.linalg.norm(row))):
            rows = np.vstack([rows, rest / length])
    return rows
