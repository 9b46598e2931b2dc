"""Discrete Gaussians of any width, from the operating system's random bits.

A wide one is put together of narrow ones: a X_1 + X_2 with X_i ~ N_Z(0, V_i) independent is
N_Z(0, a^2 V_1 + V_2) up to a factor within exp(+-ZETA) at every integer, if
V_1 V_2 / (a^2 V_1 + V_2) >= SMOOTH^2 (lemma 3 of docs/discrete-noise.md). ZETA is below 1e-130.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from core.privacy.discrete.table import LARGEST_VARIANCE, ROUNDING_VARIANCE, rounding, table

SMOOTH = 4
"""Standard deviations, in steps of the grid, from which on a Gaussian does not feel the grid."""

# 2 sum_j exp(-2 pi^2 SMOOTH^2 j^2) < 2.1 exp(-315.8) < 1e-136, and each lemma doubles it or so.
ZETA = 1e-130
LARGEST = 1 << 62  # of a variance: draws and their sums stay far inside 64 bits

# X_2's standard deviation over a: SMOOTH, and some room for the term that V_1 adds.
_OVER = SMOOTH + 1
_PIECE = 1 << 15  # draws at a time: what they are made of stays in a core's cache
_WIDEST_STEP = 800  # (_OVER * a)^2 <= LARGEST_VARIANCE


class BitSource(Protocol):
    """Independent uniform words. ``private`` is False for seeded sources."""

    @property
    def private(self) -> bool: ...

    def words(self, size: int) -> NDArray[np.uint64]: ...


class _Csprng:
    private = True

    def __init__(self) -> None:
        nonce = bytes(16)  # the key is used once
        self._stream = Cipher(algorithms.ChaCha20(os.urandom(32), nonce), mode=None).encryptor()

    def words(self, size: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._stream.update(bytes(8 * size)), "<u8").astype(
            np.uint64, copy=False
        )


class _Seeded:
    private = False

    def __init__(self, seed: int) -> None:
        self._stream = np.random.PCG64(seed)

    def words(self, size: int) -> NDArray[np.uint64]:
        return np.asarray(self._stream.random_raw(size), np.uint64)


def csprng() -> BitSource:
    """A ChaCha20 stream under a fresh key: one for every release, never shared or stored."""
    return _Csprng()


def seeded(seed: int) -> BitSource:
    """Reproducible bits for tests and simulations. NOT PRIVATE."""
    return _Seeded(seed)


def draw(size: int, variance: int, bits: BitSource) -> NDArray[np.int64]:
    """``size`` independent draws of N_Z(0, variance), within exp(+-ZETA) at every integer."""
    if not 1 <= variance <= LARGEST:
        raise ValueError(f"the variance must lie in 1..2^62, not {variance}")
    if variance <= LARGEST_VARIANCE:
        return table(variance).draw(size, bits.words)
    step, coarse, fine = split(variance)
    return step * draw(size, coarse, bits) + draw(size, fine, bits)


def around(centres: NDArray[np.int64], variance: int, bits: BitSource) -> NDArray[np.int64]:
    """One draw of N_Z(c / FRACTIONS, variance) for each c, within exp(+-ZETA) at every integer.

    A centre between integers costs nothing: r ~ N_Z(c, ROUNDING_VARIANCE) rounds at random, the
    rest of the noise is added to r, and the sum is N_Z(c, variance) by lemma 2.
    """
    rest = variance - ROUNDING_VARIANCE
    if rest * ROUNDING_VARIANCE < SMOOTH**2 * variance:
        raise ValueError(f"a variance of {variance} is too small for centres between integers")
    drawn = np.empty(len(centres), np.int64)
    for start in range(0, len(centres), _PIECE):
        piece = centres[start : start + _PIECE]
        drawn[start : start + _PIECE] = rounding().draw(piece, bits.words)
        drawn[start : start + _PIECE] += draw(len(piece), rest, bits)
    return drawn


LEAST = 100
"""The smallest variance that ``around`` accepts."""


def split(variance: int) -> tuple[int, int, int]:
    """(a, V_1, V_2) with a^2 V_1 + V_2 = variance, V_2 a table's and the condition kept."""
    step = _WIDEST_STEP
    while step > 2 and step * step * (LARGEST_VARIANCE // 2) > variance:
        step = max(step // 2, 2)
    least = (_OVER * step) ** 2
    coarse = (variance - least) // (step * step)
    fine = variance - step * step * coarse
    if coarse * fine < SMOOTH * SMOOTH * variance:
        raise ArithmeticError(f"no split of the variance {variance} was found")
    return step, coarse, fine
