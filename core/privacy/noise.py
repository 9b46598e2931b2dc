"""Where noise comes from: a CSPRNG keyed by the operating system, or, in simulation, a seed.

ChaCha with 20 rounds, a fresh 256-bit key from ``os.urandom`` for every release: no state is
shared between releases, processes or forks, and nothing can be replayed. Seeded noise makes
every artefact NOT PRIVATE, because whoever knows the seed can subtract it.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from randomgen import ChaCha


class NoiseSource(Protocol):
    """Independent Gaussian draws. ``private`` is False for seeded sources."""

    @property
    def private(self) -> bool: ...

    def normal(self, size: int, std: float) -> NDArray[np.float64]:
        """``size`` independent draws of N(0, std^2) in float64."""
        ...


class _Csprng:
    private = True

    def normal(self, size: int, std: float) -> NDArray[np.float64]:
        key = int.from_bytes(os.urandom(32), "little")
        generator = np.random.Generator(ChaCha(key=key, rounds=20))
        return np.asarray(generator.normal(0.0, std, size))


class _Seeded:
    private = False

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def normal(self, size: int, std: float) -> NDArray[np.float64]:
        return np.asarray(self._generator.normal(0.0, std, size))


def csprng() -> NoiseSource:
    """The only source that a production run accepts."""
    return _Csprng()


def seeded(seed: int) -> NoiseSource:
    """Reproducible noise for tests and simulations. NOT PRIVATE."""
    return _Seeded(seed)
