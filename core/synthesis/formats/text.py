"""JSON: one document, or one object a line."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson

from core.synthesis.formats.document import Document
from core.synthesis.rows import Block

_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_AT_ONCE = 1 << 16  # numbers spelled in one call, some milliseconds


def _embeddings(document: Document, block: Block) -> np.ndarray:
    x = document.embeddings(block)
    return x.astype(np.float32) if x.dtype == np.float16 else x  # the same numbers


def _rows(x: np.ndarray) -> Iterator[bytes]:
    """The rows [n, d] without the brackets around them, some at a time: other threads wait while
    numbers are spelled.
    """
    at_once = max(1, _AT_ONCE // x.shape[1])
    for start in range(0, len(x), at_once):
        yield orjson.dumps(x[start : start + at_once], option=_NUMPY)[1:-1]


def json_pieces(document: Document) -> Iterator[bytes]:
    """``n``, ``classes``, ``label_ids`` [n], ``labels`` [n], the columns asked for [n],
    ``embeddings`` [n][d], ``receipt``: in this order, so that rows can be written as they come.
    """
    rows = document.rows
    labels = np.concatenate([rows.labels.block(block) for block in range(len(rows))])
    head: dict[str, object] = {"n": document.n, "classes": document.classes, "label_ids": labels}
    head["labels"] = [document.classes[label] for label in labels]
    if document.columns:
        sources = np.concatenate([rows.sources_of(block) for block in range(len(rows))])
        for column in document.columns:
            names = document.names(column)
            head[f"{column}s"] = [names[source] for source in sources]
    yield orjson.dumps(head, option=_NUMPY)[:-1] + b',"embeddings":['
    reading = document.read()
    for number, block in enumerate(reading):
        yield (b"," if number else b"") + b",".join(_rows(_embeddings(document, block)))
    yield b'],"receipt":' + orjson.dumps(dict(reading.receipt)) + b"}"


def ndjson_pieces(document: Document) -> Iterator[bytes]:
    """Each line one row: ``label``, ``label_id``, the columns asked for, ``embedding``."""
    names = {column: document.names(column) for column in document.columns}
    for block in document.read():
        x, y, source = _embeddings(document, block), block.y.tolist(), block.source.tolist()
        lines = []
        for place, label in enumerate(y):
            row: dict[str, object] = {"label": document.classes[label], "label_id": label}
            row |= {column: texts[source[place]] for column, texts in names.items()}
            row["embedding"] = x[place]
            lines.append(orjson.dumps(row, option=_NUMPY | orjson.OPT_APPEND_NEWLINE))
        yield b"".join(lines)
