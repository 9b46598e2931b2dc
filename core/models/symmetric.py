"""Symmetric matrices as vectors whose L2 norm is the Frobenius norm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """vech2: upper triangle [d (d + 1) / 2], off-diagonals times sqrt(2)."""
    upper = np.triu_indices(len(matrix))
    weights = np.where(upper[0] == upper[1], 1.0, np.sqrt(2.0))
    return np.asarray(matrix[upper] * weights)


def unpack(packed: NDArray[np.floating], dim: int) -> NDArray[np.float64]:
    """Inverse of ``pack``: a symmetric [d, d]."""
    upper = np.triu_indices(dim)
    weights = np.where(upper[0] == upper[1], 1.0, np.sqrt(0.5))
    matrix = np.zeros((dim, dim))
    matrix[upper] = np.asarray(packed, np.float64) * weights
    return matrix + np.triu(matrix, 1).T
