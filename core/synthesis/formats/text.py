"""One JSON document."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson

from core.synthesis.formats.document import Document
from core.synthesis.rows import Block

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def _embeddings(document: Document, block: Block) -> np.ndarray:
    x = document.embeddings(block)
    return x.astype(np.float32) if x.dtype == np.float16 else x  # the same numbers


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
    head["receipt"] = document.receipt
    yield orjson.dumps(head, option=_NUMPY)[:-1] + b',"embeddings":['
    for number, block in enumerate(rows):
        inner = orjson.dumps(_embeddings(document, block), option=_NUMPY)[1:-1]
        yield (b"," if number else b"") + inner
    yield b"]}"
