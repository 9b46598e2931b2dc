"""Rows that the generator proposes for given classes, chunk by chunk, each from its own streams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.synthesis.decoding import Decoding, on_sphere
from core.synthesis.streams import CHUNK_ROWS, ROWS, stream


@dataclass(frozen=True, eq=False)
class Proposals:
    """Rows under one code and seed. ``number``: which one of the request's codes this is."""

    decoding: Decoding
    seed: int
    number: int = 0

    def rows(self, labels: NDArray[np.int64], block: int = 0) -> NDArray[np.float32]:
        """x [n, d] of norm sqrt(d), the rows of one block: each is drawn from the class that its
        label names.
        """
        x = np.empty((len(labels), self.decoding.spec.space.dim), np.float32)
        for chunk, start in enumerate(range(0, len(labels), CHUNK_ROWS)):
            part = labels[start : start + CHUNK_ROWS]
            whole = np.zeros(CHUNK_ROWS, np.int64)
            whole[: len(part)] = part
            draw = stream(self.seed, ROWS, block, chunk=chunk, code=self.number)
            spread, decoded = self.decoding.residuals(whole, draw)
            made = on_sphere(self.decoding.base[whole] + spread + decoded)
            x[start : start + len(part)] = made[: len(part)]
        return x
