"""Directions that matter: the decoder's basis, and factors of a noised covariance.

A released sum of second moments is the truth plus a symmetric Gaussian matrix of known scale. Its
eigenvalues beyond the noise's edge are kept and shrunk by the optimal rule for spiked Wigner
matrices (Frobenius loss; Gavish and Donoho 2017), the rest become isotropic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.frame import Frame
from core.models.layout import residual_rank
from core.models.public import Purpose, stream

Vector = NDArray[np.float64]
_FIXED_POINT_STEPS = 20
_LEAST_BULK = 0.05  # public floor of the isotropic part, as a share of the mean eigenvalue


def with_factors(
    spec: RunSpec,
    frame: Frame,
    matrix: Vector,
    entry_std: float,
    trace: float,
    rows: Vector | None = None,
) -> Frame:
    """``frame`` with factors from a noised covariance of directions, [d, d] or in ``rows`` [r, d].

    Off-diagonal noise has sd ``entry_std``; ``trace`` is what signal and bulk of the matrix share.
    The frame keeps its own trace: what becomes factors is no longer isotropic.
    """
    values, vectors = np.linalg.eigh(matrix)
    kept, _ = shrunk_spectrum(values, trace, entry_std * math.sqrt(len(matrix)))
    keep = kept > 0
    factors = np.sqrt(kept[keep])[:, None] * vectors[:, keep].T
    factors = factors[np.argsort(-kept[keep], kind="stable")]
    if rows is not None:
        factors = factors @ rows
    leading = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    total = float(frame.scale[0]) ** 2
    rest = max(total - float(kept.sum()), _LEAST_BULK * total)
    root = math.sqrt(spec.space.dim)
    return replace(
        frame,
        scale=np.array([math.sqrt(rest)]),
        factors=root * factors,
        factor_directions=np.zeros((frame.codes.shape[1], len(factors))),
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


def contrast_basis(spec: RunSpec, contrasts: Vector, shifts: Vector, class_probs: Vector) -> Vector:
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
    shape = (residual_rank(spec), spec.space.dim)
    return np.asarray(stream(spec, Purpose.BASIS).normal(size=shape))


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
