"""What is written, whatever the format."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.receipts.content import Content, RowsDigest
from core.synthesis.codes import Code
from core.synthesis.rows import Block, Rows

RECEIPT_KEY = "fedhypevae.receipt"
Column = Literal["domain", "code_id"]
Dtype = Literal["float16", "float32", "float64"]
Receipt = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Document:
    """``rows`` under names: ``classes`` [C], ``codes`` [K] that they are made under. ``dtype`` of
    the embeddings; ``columns`` beside embedding and label.

    ``receipt`` is known before the rows are; ``close`` gives the one that names their content. It
    is called once a reading, after the last row. ``watch`` is told how many rows were made.
    """

    rows: Rows
    classes: tuple[str, ...]
    codes: tuple[Code, ...]
    dim: int
    receipt: Receipt
    close: Callable[[Content], Receipt]
    dtype: Dtype = "float32"
    columns: Sequence[Column] = ()
    watch: Callable[[int], None] | None = None

    @property
    def n(self) -> int:
        return self.rows.n

    def read(self) -> Reading:
        """The blocks in order, hashed on their way."""
        return Reading(self)

    def embeddings(self, block: Block) -> NDArray[np.floating]:
        """[n, d] in the document's number type, row by row in memory."""
        return np.ascontiguousarray(block.x, dtype=self.dtype)

    def names(self, column: Column) -> tuple[str, ...]:
        """[K] what a column says of rows of each code."""
        return tuple(code.domain if column == "domain" else code.id for code in self.codes)


class Reading:
    """One pass over a document's blocks; ``receipt`` is the closed one once all were read."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._receipt: Receipt | None = None

    def __iter__(self) -> Iterator[Block]:
        digest, watch, made = RowsDigest(), self._document.watch, 0
        for block in self._document.rows:
            digest.add(block)
            made += len(block.y)
            if watch is not None:
                watch(made)
            yield block
        self._receipt = self._document.close(digest.content())

    @property
    def receipt(self) -> Receipt:
        if self._receipt is None:
            raise RuntimeError("the receipt is closed after the last row")
        return self._receipt


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
