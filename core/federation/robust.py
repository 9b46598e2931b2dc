"""The sum over a training round's clients: plain, or M times a coordinate-wise trimmed mean.

Each of the M updates is a clipped sum over units plus noise of ONE standard deviation s, whatever
the site's size. What is trimmed is these sums, not means per unit: noise of one law makes the
weight of every site in the trimmed sum the same as in the plain one as long as noise is large
against what sites add (to first order in signal / s each sum counts once, so each unit counts
once), and the noise of the result is known exactly. Means per unit would have noise that grows as
sites get smaller: small sites, which are noisiest, would be trimmed nearly always, and a site could
choose its own weight by the size that it releases. Where sums stand out of the noise, the trimmed
one leans to the sites in the middle of the order, coordinate by coordinate: that is its price.

With up to t of M updates anything at all, every coordinate of the trimmed mean lies between the
smallest and the largest of the others'.

Streaming: the t smallest and t largest of each coordinate so far, t values more, and the sum of
what has left them for good: (1 + 3 t) P float64 numbers. Nothing extreme ever enters that sum, so
it cannot cancel; updates come in a fixed order, so a replay gives the same bytes.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

if TYPE_CHECKING:
    from core.federation.plan import Plan

Vector = NDArray[np.float64]
DEFAULT_TRIM_SHARE = 0.1  # stored specifications leave it out: never to be changed
_NODES = 96  # of each Gauss-Legendre rule; 64 give the same six digits


class Sum(Protocol):
    """Takes vectors [P] one at a time. ``noise_gain``: standard deviation of a coordinate of the
    total when each of the M vectors has independent Gaussian noise of standard deviation 1.
    """

    @property
    def noise_gain(self) -> float: ...

    def add(self, vector: NDArray[np.floating]) -> None: ...

    def total(self) -> Vector:
        """[P], once all M vectors were added."""
        ...


def sum_of(plan: Plan, size: int, updates: int) -> Sum:
    """What a plan sums a training round of ``updates`` vectors [``size``] with."""
    if plan.aggregation == "trimmed-mean":
        return TrimmedSum(size, updates, trim_count(plan.trim_share, updates))
    return PlainSum(size, updates)


def trim_count(share: float, updates: int) -> int:
    """t = floor(share * M), of the decimal that was written."""
    return math.floor(Fraction(repr(share)) * updates)


class PlainSum:
    """The sum."""

    def __init__(self, size: int, updates: int) -> None:
        self.noise_gain = math.sqrt(updates)
        self._total = np.zeros(size)

    def add(self, vector: NDArray[np.floating]) -> None:
        self._total += vector

    def total(self) -> Vector:
        return self._total


class TrimmedSum:
    """M times the mean, in each coordinate, without the ``trimmed`` smallest and largest values."""

    def __init__(self, size: int, updates: int, trimmed: int) -> None:
        if not 0 <= 2 * trimmed < updates:
            raise ValueError(f"{trimmed} of {updates} values cannot be trimmed at each end")
        self.noise_gain = trimmed_noise_gain(updates, trimmed)
        self._updates, self._trimmed, self._seen = updates, trimmed, 0
        # A coordinate's values side by side: both ends and t more, so that sorting is seldom.
        self._held = np.zeros((size, 3 * trimmed))
        self._columns = 0
        self._kept = np.zeros(size)

    def add(self, vector: NDArray[np.floating]) -> None:
        self._seen += 1
        if self._trimmed == 0:
            self._kept += vector
            return
        self._held[:, self._columns] = vector
        self._columns += 1
        if self._columns == 3 * self._trimmed:
            self._let_go()

    def _let_go(self) -> None:
        """What is neither among the t smallest nor among the t largest never will be again."""
        t, columns = self._trimmed, self._columns
        held = self._held[:, :columns]
        held.sort(axis=1)
        for column in range(t, columns - t):  # in this order: the same bytes wherever it runs
            self._kept += held[:, column]
        held[:, t : 2 * t] = held[:, columns - t :]
        self._columns = 2 * t

    def total(self) -> Vector:
        """Raises ``ValueError`` if not all M vectors were added."""
        if self._seen != self._updates:
            raise ValueError(f"{self._seen} of {self._updates} vectors were added")
        if self._trimmed:
            self._let_go()
        return self._kept * (self._updates / (self._updates - 2 * self._trimmed))


@lru_cache(maxsize=256)
def trimmed_noise_gain(updates: int, trimmed: int) -> float:
    """Standard deviation of M times the trimmed mean of M independent standard Gaussians.

    Given the largest a of the t values trimmed below and the smallest b of those above, the
    M - 2 t others are independent Gaussians truncated to (a, b), with mean m(a, b) and variance
    v(a, b). Means are symmetric around 0, hence

        Var = E[v(a, b)] / (M - 2 t) + E[m(a, b)^2],

    over the joint law of two order statistics: U = Phi(a) is Beta(t, M - t + 1), and given it,
    (1 - Phi(b)) / (1 - U) is Beta(t, M - 2 t + 1). Gauss-Legendre in both quantiles.
    """
    if trimmed == 0:
        return math.sqrt(updates)
    inner = updates - 2 * trimmed
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    # Nodes close to 0 and 1, where quantiles move fast: p = (3 u - u^3) / 4 + 1/2.
    at, weight = 0.5 + (3.0 * nodes - nodes**3) / 4.0, weights * 0.75 * (1.0 - nodes**2)
    below = special.betaincinv(trimmed, updates - trimmed + 1, at)[:, None]
    above = (1.0 - below) * special.betaincinv(trimmed, inner + 1, at)[None, :]
    a, b = special.ndtri(below), -special.ndtri(above)
    mass = 1.0 - below - above
    density_a, density_b = _density(a), _density(b)
    mean = (density_a - density_b) / mass
    variance = 1.0 + (a * density_a - b * density_b) / mass - mean**2
    of_mean = weight @ (variance / inner + mean**2) @ weight
    return updates * math.sqrt(float(of_mean))


def _density(x: Vector) -> Vector:
    return np.asarray(np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi))
