"""Which label each row of a request has, block by block, whatever the request's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.synthesis.streams import BLOCK_ROWS, LABELS, stream

Labels = NDArray[np.int64]


class LabelSource(Protocol):
    """``n`` labels in blocks of ``BLOCK_ROWS``, the last one shorter."""

    @property
    def n(self) -> int: ...

    def block(self, block: int) -> Labels: ...


@dataclass(frozen=True, eq=False)
class Drawn:
    """Each label by itself, by ``probabilities`` [C]: fewer rows are a prefix of more."""

    n: int
    probabilities: NDArray[np.float64]
    seed: int

    def block(self, block: int) -> Labels:
        draw = stream(self.seed, LABELS, block)
        drawn = draw.choice(len(self.probabilities), size=BLOCK_ROWS, p=self.probabilities)
        return np.asarray(drawn[: self.n - block * BLOCK_ROWS], np.int64)


@dataclass(frozen=True)
class Counted:
    """Exactly ``counts`` [C] rows of each class, spread evenly: every block has about the mix of
    the whole, so that it costs what every other one costs. Within a block the order is random.
    """

    counts: tuple[int, ...]
    seed: int

    @property
    def n(self) -> int:
        return sum(self.counts)

    def block(self, block: int) -> Labels:
        first, last = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self.n)
        ends = zip(self._before(last), self._before(first), strict=True)
        own = [after - before for after, before in ends]
        labels = np.repeat(np.arange(len(self.counts), dtype=np.int64), own)
        return np.asarray(stream(self.seed, LABELS, block).permutation(labels), np.int64)

    def _before(self, rows: int) -> list[int]:
        """How many of the first ``rows`` rows each class has, if the j-th of its c rows stands at
        (j - 1/2) / c of the whole; of two at one place the first class comes first.
        """
        share = Fraction(rows, self.n)
        taken = [int(share * count + Fraction(1, 2)) for count in self.counts]
        known = [label for label, count in enumerate(self.counts) if count]

        def place(label: int, row: int) -> tuple[Fraction, int]:
            return Fraction(2 * row - 1, 2 * self.counts[label]), label

        # At most half a row a class is too much or too little.
        while sum(taken) > rows:
            taken[max((place(y, taken[y]), y) for y in known if taken[y])[1]] -= 1
        while sum(taken) < rows:
            open_ = (y for y in known if taken[y] < self.counts[y])
            taken[min((place(y, taken[y] + 1), y) for y in open_)[1]] += 1
        return taken


def apportioned(n: int, proportions: Sequence[float]) -> tuple[int, ...]:
    """``n`` rows by shares that sum to 1: rounded down, then the largest remainders get one more
    (Hamilton's method); of equal ones the first.
    """
    exact = [Fraction(share) * n / sum(map(Fraction, proportions)) for share in proportions]
    counts = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda y: (counts[y] - exact[y], y))
    for label in by_rest[: n - sum(counts)]:
        counts[label] += 1
    return tuple(counts)
