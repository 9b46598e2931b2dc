"""Rows as files and streams: a writer for each format, in constant memory.

JSON, Parquet and npz hold the closed receipt, an Arrow stream the opening one in its schema. The
others are plain tables; whoever hands them out says where the receipt is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from core.synthesis.formats import arrays, tables, text
from core.synthesis.formats.document import RECEIPT_KEY as RECEIPT_KEY
from core.synthesis.formats.document import Document as Document


@dataclass(frozen=True)
class Format:
    """``pieces`` of a document are its bytes in order; the first ones come after a few blocks."""

    media: str
    pieces: Callable[[Document], Iterator[bytes]]


FORMATS: Mapping[str, Format] = {
    "json": Format("application/json", text.json_pieces),
    "ndjson": Format("application/x-ndjson", text.ndjson_pieces),
    "csv": Format("text/csv", tables.csv_pieces),
    "arrow": Format("application/vnd.apache.arrow.stream", tables.arrow_pieces),
    "parquet": Format("application/vnd.apache.parquet", tables.parquet_pieces),
    "npz": Format("application/x-npz", arrays.npz_pieces),
    "npy": Format("application/x-npy", arrays.npy_pieces),
}


def whole(kind: str, document: Document) -> bytes:
    """All bytes of a document at once."""
    return b"".join(FORMATS[kind].pieces(document))
