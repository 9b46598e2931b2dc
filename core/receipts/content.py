"""What rows hold, as one digest, whatever the format that they come in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import Field

from core.federation.values import Frozen
from core.synthesis.rows import Block

ALGORITHM: Literal["fhv-rows-1"] = "fhv-rows-1"


class Content(Frozen):
    """``fhv-rows-1``: SHA-256 over, block by block of 4,096 rows, the embeddings as little-endian
    float32 in order of rows, then the class ids as little-endian int32.
    """

    algorithm: Literal["fhv-rows-1"] = ALGORITHM
    n: int = Field(ge=0)
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class RowsDigest:
    """``Content`` of rows that come block by block."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._n = 0

    def add(self, block: Block) -> None:
        """Blocks in order."""
        for part, dtype in ((block.x, "<f4"), (block.y, "<i4")):
            self._hash.update(np.ascontiguousarray(part, dtype).data)
        self._n += len(block.y)

    def content(self) -> Content:
        return Content(n=self._n, digest=f"sha256:{self._hash.hexdigest()}")


def content_of(blocks: Iterable[Block]) -> Content:
    digest = RowsDigest()
    for block in blocks:
        digest.add(block)
    return digest.content()
