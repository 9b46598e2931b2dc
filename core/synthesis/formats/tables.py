"""Arrow streams and Parquet: columns ``embedding``, ``label``, ``label_id`` and those that were
asked for. The receipt is in the schema's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from core.synthesis.formats.document import RECEIPT_KEY, Document, Sink
from core.synthesis.rows import Block

_GROUP_BLOCKS = 4  # blocks of a Parquet row group: 16,384 rows


def _dictionary(ids: np.ndarray, names: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(ids, pa.int32()), pa.array(names, pa.string()))


def schema_of(document: Document) -> pa.Schema:
    """Of every batch of a document."""
    names = pa.dictionary(pa.int32(), pa.string())
    number = pa.from_numpy_dtype(np.dtype(document.dtype))
    return pa.schema(
        [
            ("embedding", pa.list_(number, document.dim)),
            ("label", names),
            ("label_id", pa.int32()),
            *((column, names) for column in document.columns),
        ],
        metadata={RECEIPT_KEY: json.dumps(document.receipt, sort_keys=True)},
    )


def batch_of(document: Document, block: Block) -> pa.RecordBatch:
    flat = pa.array(document.embeddings(block).reshape(-1))
    columns = [
        pa.FixedSizeListArray.from_arrays(flat, document.dim),
        _dictionary(block.y, document.classes),
        pa.array(block.y, pa.int32()),
        *(_dictionary(block.source, document.names(column)) for column in document.columns),
    ]
    return pa.record_batch(columns, schema=schema_of(document))


def arrow_pieces(document: Document) -> Iterator[bytes]:
    """An IPC stream, one batch a block."""
    sink = Sink()
    with pa.ipc.new_stream(sink, schema_of(document)) as writer:
        for block in document.rows:
            writer.write_batch(batch_of(document, block))
            yield sink.take()
    yield sink.take()


def parquet_pieces(document: Document) -> Iterator[bytes]:
    """A file, written as it grows: its index stands at the end."""
    sink, waiting = Sink(), list[pa.RecordBatch]()
    names = ["label", *document.columns]
    with pq.ParquetWriter(
        sink, schema_of(document), compression="zstd", use_dictionary=names
    ) as writer:
        for number, block in enumerate(document.rows, start=1):
            waiting.append(batch_of(document, block))
            if number % _GROUP_BLOCKS == 0 or number == len(document.rows):
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
                yield sink.take()
    yield sink.take()
