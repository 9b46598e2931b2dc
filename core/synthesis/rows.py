"""The rows of one request, block by block: any block by itself, always the same.

A row depends on (model, request, seed, its place) and on nothing else: not on how many rows are
asked for, which blocks were made before, by how many threads or processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.synthesis.labels import LabelSource
from core.synthesis.one_thread import one_thread
from core.synthesis.streams import BLOCK_ROWS, DOMAINS, stream


class Source(Protocol):
    """Makes rows [n, d] with the labels [n] of one block, under one code."""

    def rows(self, labels: NDArray[np.int64], block: int = 0) -> NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class Block:
    """``x`` float32 [n, d] of norm sqrt(d), ``y`` int64 [n] ids of classes, ``source`` int64 [n]
    which of the request's codes each row was made under.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    source: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """``sources`` [K]: one a code, drawn for each row by ``shares`` [K]."""

    sources: tuple[Source, ...]
    shares: NDArray[np.float64]
    labels: LabelSource
    seed: int

    @property
    def n(self) -> int:
        return self.labels.n

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-self.n // BLOCK_ROWS)

    def __iter__(self) -> Iterator[Block]:
        """All blocks in order. The next one is made by another thread while its reader works on
        one.
        """
        if len(self) == 1:
            yield self.block(0)
            return
        with one_thread(), ThreadPoolExecutor(1, thread_name_prefix="rows") as ahead:
            following = ahead.submit(self.block, 0)
            for number in range(1, len(self) + 1):
                made = following.result()
                if number < len(self):
                    following = ahead.submit(self.block, number)
                yield made

    def block(self, block: int) -> Block:
        """Rows ``block * BLOCK_ROWS`` and following. Raises ``IndexError`` beyond the last one."""
        if not 0 <= block < len(self):
            raise IndexError(f"there are {len(self)} blocks, numbered from 0, not one {block}")
        y = self.labels.block(block)
        source = self.sources_of(block)
        with one_thread():
            if len(self.sources) == 1:
                return Block(self.sources[0].rows(y, block), y, source)
            made = {
                number: self.sources[number].rows(y[source == number], block)
                for number in np.unique(source).tolist()
            }
        x = np.empty((len(y), next(iter(made.values())).shape[1]), np.float32)
        for number, rows in made.items():
            x[source == number] = rows
        return Block(x, y, source)

    def sources_of(self, block: int) -> NDArray[np.int64]:
        """[n] which code each row of a block is made under."""
        count = min(BLOCK_ROWS, self.n - block * BLOCK_ROWS)
        if len(self.sources) == 1:
            return np.zeros(count, np.int64)
        draw = stream(self.seed, DOMAINS, block)
        drawn = draw.choice(len(self.sources), size=BLOCK_ROWS, p=self.shares)
        return np.asarray(drawn[:count], np.int64)
