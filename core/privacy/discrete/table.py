"""Discrete Gaussians of a moderate width, by inversion of their distribution functions.

N_Z(c, V) has P(k) proportional to exp(-(k - c)^2 / 2V) over the integers k. With C_k = P(X <= k)
and U uniform on [0, 1), X = min {k : U < C_k}. U is drawn bit by bit: 64 bits decide all but one
draw in about 2^45, and 192 more decide those. No floating point is involved anywhere, and no bit is
used twice. The table ends where less than 2^-300 of the mass is left, so a draw differs from
N_Z(c, V) by less than 2^-250 in total variation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Words = Callable[[int], NDArray[np.uint64]]
"""``words(n)``: n independent uniform 64-bit words."""

LARGEST_VARIANCE = 1 << 24  # a table of 21 * 2 * 4096 entries, which stays in a core's cache
_WORD = 64
_DEPTH = 4  # words of a threshold
_PRECISION = 448  # bits of the probabilities while they are summed
_TAIL = 21  # standard deviations: exp(-21^2 / 2) < 2^-317
_GUIDE_BITS = 16
_GUIDE_SHIFT = np.uint64(_WORD - _GUIDE_BITS)

FRACTION_BITS = 8
FRACTIONS = 1 << FRACTION_BITS
"""Centres of ``rounded`` are multiples of 1 / FRACTIONS."""

ROUNDING_VARIANCE = 20
_ROW_GUIDE_BITS = 8
_ROW_GUIDE_SHIFT = np.uint64(_WORD - _ROW_GUIDE_BITS)


class Table:
    """Thresholds of N_Z(0, variance); build one with ``table``."""

    def __init__(self, variance: int) -> None:
        if not 1 <= variance <= LARGEST_VARIANCE:
            raise ValueError(f"the variance must lie in 1..{LARGEST_VARIANCE}, not {variance}")
        self.exact, self.lowest = thresholds(variance)
        self._first = _first_words(self.exact)
        starts = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << _GUIDE_SHIFT
        self._guide = np.searchsorted(self._first, starts, side="right").astype(np.int32)

    def draw(self, size: int, words: Words) -> NDArray[np.int64]:
        """``size`` independent draws."""
        u = words(size)
        place: NDArray[np.int32] = self._guide[u >> _GUIDE_SHIFT]
        last = len(self._first) - 1
        place += self._first[place] <= u
        behind = np.flatnonzero(self._first[place] <= u)
        place[behind] = np.searchsorted(self._first, u[behind], side="right")
        np.minimum(place, last, out=place)
        # Equal words decide nothing: the threshold lies somewhere inside that word's interval.
        for at in np.flatnonzero(self._first[place - 1] == u).tolist():
            place[at] = decide(self.exact, int(u[at]), words)
        drawn = place.astype(np.int64)
        drawn += self.lowest
        return drawn


class Rounding:
    """Thresholds of N_Z(f / FRACTIONS, ROUNDING_VARIANCE) for every f; get it by ``rounding``."""

    def __init__(self) -> None:
        self.exact, lowest = zip(
            *(thresholds(ROUNDING_VARIANCE, f) for f in range(FRACTIONS)), strict=True
        )
        self.lowest = lowest[0]
        self._length = len(self.exact[0])
        rows = np.stack([_first_words(each) for each in self.exact])
        starts = np.arange(1 << _ROW_GUIDE_BITS, dtype=np.uint64) << _ROW_GUIDE_SHIFT
        guide = np.stack([np.searchsorted(row, starts, side="right") for row in rows])
        # Places in the flattened rows, so that one index suffices.
        offsets = np.arange(FRACTIONS)[:, None] * self._length
        self._first, self._guide = rows.ravel(), (guide + offsets).astype(np.int32).ravel()

    def draw(self, centres: NDArray[np.int64], words: Words) -> NDArray[np.int64]:
        """One draw of N_Z(c / FRACTIONS, ROUNDING_VARIANCE) for each c of ``centres``."""
        whole, fraction = centres >> FRACTION_BITS, centres & (FRACTIONS - 1)
        u = words(len(centres))
        at = (fraction << _ROW_GUIDE_BITS) | (u >> _ROW_GUIDE_SHIFT).astype(np.int64)
        place: NDArray[np.int32] = self._guide[at]
        row = fraction.astype(np.int32) * self._length
        last = row + (self._length - 1)
        np.minimum(place, last, out=place)
        behind = np.flatnonzero((self._first[place] <= u) & (place < last))
        while behind.size:
            place[behind] += 1
            still = (self._first[place[behind]] <= u[behind]) & (place[behind] < last[behind])
            behind = behind[still]
        place -= row
        for tie in np.flatnonzero(self._first[row + place - 1] == u).tolist():
            place[tie] = decide(self.exact[int(fraction[tie])], int(u[tie]), words)
        drawn: NDArray[np.int64] = whole + place
        drawn += self.lowest
        return drawn


@lru_cache(maxsize=64)
def table(variance: int) -> Table:
    return Table(variance)


@lru_cache(maxsize=1)
def rounding() -> Rounding:
    return Rounding()


def decide(exact: list[int], first: int, words: Words) -> int:
    """The place of U among ``exact`` for all of U's words, of which ``first`` did not suffice."""
    u = first
    for word in words(_DEPTH - 1).tolist():
        u = u << _WORD | word
    low, high = 0, len(exact) - 1
    while low < high:
        middle = (low + high) // 2
        if u < exact[middle]:
            high = middle
        else:
            low = middle + 1
    return low


def _first_words(exact: list[int]) -> NDArray[np.uint64]:
    top = (1 << _WORD) - 1
    return np.array([min(each >> _WORD * (_DEPTH - 1), top) for each in exact], np.uint64)


def thresholds(variance: int, fraction: int = 0) -> tuple[list[int], int]:
    """floor(2^256 C_k) of N_Z(fraction / FRACTIONS, variance) for k = -K..K, and -K.

    K is 21 standard deviations and some. exp(-(k - c)^2 / 2V) by two recurrences of rounded-down
    products, in units of 2^-448. After 10^5 steps the error of a term is below 10^11 * 2^-448,
    hence that of a sum below 2^-370: only a threshold that lies so near to a multiple of 2^-256
    could be off, by one unit.
    """
    reach = _TAIL * math.isqrt(variance) + _TAIL + 2
    scale = 2 * variance * FRACTIONS
    # exp(-(2 (k - c) + 1) / 2V) at k = 0, and the same downwards.
    up = _side(FRACTIONS - 2 * fraction, scale, variance, reach)
    down = _side(FRACTIONS + 2 * fraction, scale, variance, reach)
    weights = [*reversed(down), 1 << _PRECISION, *up]
    total, below, found = sum(weights), 0, []
    for weight in weights:
        below += weight
        found.append((below << _WORD * _DEPTH) // total)
    return found, -reach


def _side(numerator: int, denominator: int, variance: int, reach: int) -> list[int]:
    """Weights at distance 1..reach on one side, relative to that of 0 (times 2^448)."""
    factor, slower = _exp_minus(numerator, denominator), _exp_minus(1, variance)
    weight, found = 1 << _PRECISION, []
    for _ in range(reach):
        weight = weight * factor >> _PRECISION
        factor = factor * slower >> _PRECISION
        found.append(weight)
    return found


def _exp_minus(numerator: int, denominator: int) -> int:
    """2^448 exp(-numerator / denominator) for a ratio between -1 and 1, by Taylor's series."""
    x = abs(numerator) * (1 << _PRECISION) // denominator
    total, term, n = 0, 1 << _PRECISION, 0
    while term:
        total += term if numerator < 0 or n % 2 == 0 else -term
        n += 1
        term = (term * x >> _PRECISION) // n
    return total
