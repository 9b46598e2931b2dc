"""Public maps of directions x/|x| that a sketch may use: drawn from the plan's seed, no data.

Random Fourier features (Rahimi and Recht 2007) come in pairs of cosine and sine, so that every
feature vector has length exactly 1; their inner products estimate the mean of Gaussian kernels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.public import Purpose, stream

Vector = NDArray[np.float64]

# Directions are at most 2 apart: from near neighbours to the whole sphere.
BANDWIDTHS = (0.5, 1.0, 2.0)


def frequencies(spec: RunSpec) -> Vector:
    """[pairs, d], for the bandwidths in turn."""
    return _drawn(spec, Purpose.FREQUENCIES, spec.plan.sketch.feature_pairs)


def report_frequencies(spec: RunSpec, pairs: int) -> Vector:
    """[pairs, d] of the report round, which has its own stream: a model that was fitted to features
    is judged by others.
    """
    return _drawn(spec, Purpose.REPORT_FREQUENCIES, pairs)


def _drawn(spec: RunSpec, purpose: Purpose, pairs: int) -> Vector:
    widths = np.resize(BANDWIDTHS, pairs)
    return np.asarray(stream(spec, purpose).normal(size=(pairs, spec.space.dim)) / widths[:, None])


def fourier_features(directions: Vector, omega: Vector) -> Vector:
    """[n, 2 pairs] of unit length, from directions [n, d] and ``frequencies``."""
    phases = directions @ omega.T
    return np.asarray(np.hstack([np.cos(phases), np.sin(phases)]) / np.sqrt(len(omega)))


def projection(spec: RunSpec) -> Vector:
    """P [rank, d] with orthonormal rows."""
    rank = min(spec.plan.sketch.projected_rank, spec.space.dim)
    drawn = stream(spec, Purpose.PROJECTION).normal(size=(spec.space.dim, rank))
    return np.asarray(np.linalg.qr(drawn)[0].T)
