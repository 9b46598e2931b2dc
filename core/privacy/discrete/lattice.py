"""A public grid for noised sums: how fine, how much noise, how many bits.

Neighbouring relation: add or remove one unit. A unit moves a site's sum x [P] by at most ``bound``
in L2 norm. In steps of the grid, x / step is rounded to multiples of 1 / FRACTIONS (which moves
neighbours apart by at most sqrt(P) / FRACTIONS more), and one integer is drawn around each:
N_Z(x / step, V). That the grid is coarse costs nothing else. By theorem 1 of docs/discrete-noise.md
the sum of n such contributions hides a unit as well as N(0, tau^2) with tau^2 = n V - SMOOTH^2
would: the noise multiplier is tau / sensitivity, in steps. No floating point enters the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.privacy.discrete.gaussian import LARGEST, LEAST, SMOOTH, BitSource, around
from core.privacy.discrete.table import FRACTIONS

_FINENESS = 256  # rounding adds at most 1 / 128 to the sensitivity, half of it on average
# Sums of float64 vectors depend on their order: room for that, relative to the bound. Each of n
# additions is off by 2**-53 of a partial sum, which is at most n units long; so in both neighbours.
_SUMMING = 2.0**-12
_ADDING = 2.0**-52
_TAILS = 12  # standard deviations of the noise that the modulus has room for
# Of a sum: a centre in parts of a step (FRACTIONS) still fits 64 bits once it was cut.
MOST_BITS = 54


@dataclass(frozen=True)
class Lattice:
    """``step``: a power of two, in the units of the sum. ``sensitivity`` (L2), ``variance`` (of one
    contribution's noise) and ``shares`` (contributions whose noise must be in a sum) in steps.
    """

    step: float
    sensitivity: float
    variance: int
    shares: int
    bits: int

    @property
    def noise_std(self) -> float:
        """Of one contribution, in the units of the sum."""
        return math.sqrt(self.variance) * self.step

    @property
    def noise_multiplier(self) -> float:
        """What ``shares`` contributions together guarantee (theorem 1)."""
        return math.sqrt(self.shares * self.variance - SMOOTH**2) / self.sensitivity

    @property
    def bytes_each(self) -> int:
        """Of one coordinate on the wire."""
        return -(-self.bits // 8)


def design(
    *, bound: float, length: int, noise_multiplier: float, shares: int, contributions: int,
    largest: float,
) -> Lattice:  # fmt: skip
    """The grid of a sum over ``contributions`` sites, each of |x| at most ``largest``.

    ``bound``: L2 sensitivity of one site's sum for one unit. Noise is such that any ``shares``
    contributions guarantee ``noise_multiplier``. ``largest / bound`` is the number of units of a
    site: with very many of them what the order of their sum does counts, too. Raises ``ValueError``
    where no grid fits ``MOST_BITS``.
    """
    if not (0 < bound < math.inf and 0 < noise_multiplier < math.inf):
        raise ValueError("bound and noise_multiplier must be positive and finite")
    if not (1 <= shares <= contributions and length >= 1):
        raise ValueError("shares must lie in 1..contributions, length be positive")
    root = math.isqrt(length - 1) + 1
    step = 2.0 ** math.floor(math.log2(bound * FRACTIONS / (_FINENESS * root)))
    summing = max(_SUMMING, (largest / bound) ** 2 * _ADDING)
    sensitivity = bound * (1.0 + summing) / step + root / FRACTIONS
    whole = math.ceil((noise_multiplier * sensitivity) ** 2 * (1.0 + 2.0**-40)) + SMOOTH**2
    variance = max(-(-whole // shares), LEAST)
    noise = _TAILS * math.isqrt(contributions * variance) + _TAILS
    reach = math.ceil(contributions * largest / step) + contributions + noise
    bits = reach.bit_length() + 1
    if variance > LARGEST or bits > MOST_BITS:
        raise ValueError(
            f"sums of {contributions} sites up to {largest:g} with noise multiplier "
            f"{noise_multiplier:g} do not fit {MOST_BITS} bits"
        )
    return Lattice(step, sensitivity, variance, shares, bits)


def released(x: NDArray[np.float64], lattice: Lattice, bits: BitSource) -> NDArray[np.int64]:
    """One site's contribution [P], in steps. Nothing without noise is returned.

    A coordinate beyond the modulus' reach is cut there, which moves neighbours no further apart; no
    sum of n_max clipped units is that large. Raises ``ValueError`` for one that is not finite.
    """
    if not np.isfinite(x).all():
        raise ValueError("the clipped sum is not finite")
    limit = float(1 << (lattice.bits - 2))
    centres = np.clip(x / lattice.step, -limit, limit) * FRACTIONS
    return around(np.rint(centres).astype(np.int64), lattice.variance, bits)
