"""Where noise comes from: a CSPRNG keyed by the operating system, or, in simulation, a seed.

``normal`` is float64 noise; ``bits`` are what exact noise on a grid is made of
(``core.privacy.discrete``), for plans with ``privacy.noise`` "discrete" and for secure sums.

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

from core.privacy.discrete import gaussian
from core.privacy.discrete.gaussian import BitSource


class NoiseSource(Protocol):
    """Independent Gaussian draws. ``private`` is False for seeded sources."""

    @property
    def private(self) -> bool: ...

    def normal(self, size: int, std: float) -> NDArray[np.float64]:
        """``size`` independent draws of N(0, std^2) in float64."""
        ...

    def bits(self) -> BitSource:
        """Random bits for one release's noise on a grid, as private as this source."""
        ...


class _Csprng:
    private = True

    def normal(self, size: int, std: float) -> NDArray[np.float64]:
        key = int.from_bytes(os.urandom(32), "little")
        generator = np.random.Generator(ChaCha(key=key, rounds=20))
        return np.asarray(generator.normal(0.0, std, size))

    def bits(self) -> BitSource:
        return gaussian.csprng()


class _Seeded:
    private = False

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._bits = gaussian.seeded(seed)

    def normal(self, size: int, std: float) -> NDArray[np.float64]:
        return np.asarray(self._generator.normal(0.0, std, size))

    def bits(self) -> BitSource:
        return self._bits  # goes on where the last release stopped


def csprng() -> NoiseSource:
    """The only source that a production run accepts."""
    return _Csprng()


def seeded(seed: int) -> NoiseSource:
    """Reproducible noise for tests and simulations. NOT PRIVATE."""
    return _Seeded(seed)
