"""What is written, whatever the format."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.synthesis.rows import Block, Rows

RECEIPT_KEY = "fedhypevae.receipt"
Column = Literal["domain", "code_id"]
Dtype = Literal["float16", "float32", "float64"]


@dataclass(frozen=True, eq=False)
class Document:
    """``rows`` under names: ``classes`` [C], ``domains`` [K] and ``code_ids`` [K] of the request's
    codes. ``dtype`` of the embeddings; ``columns`` beside embedding and label.
    """

    rows: Rows
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    code_ids: tuple[str, ...]
    dim: int
    receipt: dict[str, Any]
    dtype: Dtype = "float32"
    columns: Sequence[Column] = ()

    @property
    def n(self) -> int:
        return self.rows.n

    def embeddings(self, block: Block) -> NDArray[np.floating]:
        """[n, d] in the document's number type, row by row in memory."""
        return np.ascontiguousarray(block.x, dtype=self.dtype)

    def names(self, column: Column) -> tuple[str, ...]:
        return self.domains if column == "domain" else self.code_ids


class Sink(io.RawIOBase):
    """A file that is only written: what came since the last ``take``."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._at += len(part)
        return len(part)

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
