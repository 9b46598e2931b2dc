"""The frame after step 2 of the sketch: spread along released directions. Post-processing.

The released sum of clipped second moments is the truth plus a symmetric Gaussian matrix of known
scale. Its eigenvalues beyond the noise's edge are kept and shrunk by the optimal rule for spiked
Wigner matrices (Frobenius loss; Gavish and Donoho 2017), the rest become isotropic, and the whole
keeps the trace that unit-length directions must have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models import symmetric
from core.models.frame import Frame, residual_basis
from core.privacy.mechanism import sensitivity

Vector = NDArray[np.float64]
_FIXED_POINT_STEPS = 20
_LEAST_BULK = 0.05  # public floor of the isotropic part, as a share of the mean eigenvalue


def with_spread(
    spec: RunSpec, frame: Frame, moments: Sequence[Vector], client_ids: Sequence[str]
) -> Frame:
    """The frame with ``factors`` [k, d] and ``scale`` from released moments [d (d + 1) / 2] each.

    ``client_ids`` are whose moments these are; the denominator is their noised number of units.
    """
    dim = spec.space.dim
    units = float(sum(frame.sizes[frame.client_ids.index(client)] for client in client_ids))
    mean = np.sum(moments, axis=0) / units
    noise_std = spec.event(1).noise_multiplier * sensitivity(spec, 1)
    # An off-diagonal entry carries 1/sqrt(2) of its packed coordinate's noise.
    entry_std = noise_std * math.sqrt(len(moments)) / units / math.sqrt(2.0)
    total = float(frame.scale[0]) ** 2  # what the pooled means leave of the length 1
    matrix = symmetric.unpack(mean, dim)
    # Clipping shortened long residuals; the true trace is known from the means.
    observed = max(float(np.trace(matrix)), 0.2 * total)
    stretch = total / observed
    values, vectors = np.linalg.eigh(stretch * matrix)
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
