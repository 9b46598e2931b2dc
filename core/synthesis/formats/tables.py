"""Arrow streams and Parquet: columns ``embedding``, ``label``, ``label_id`` and those that were
asked for; CSV, with a column for each number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from core.synthesis.formats.document import RECEIPT_KEY, Document, Receipt, Sink
from core.synthesis.rows import Block

_GROUP_BLOCKS = 4  # blocks of a Parquet row group: 16,384 rows


def _dictionary(ids: np.ndarray, names: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(ids, pa.int32()), pa.array(names, pa.string()))


def schema_of(document: Document) -> pa.Schema:
    """Of every batch of a document, without metadata."""
    names = pa.dictionary(pa.int32(), pa.string())
    number = pa.from_numpy_dtype(np.dtype(document.dtype))
    return pa.schema(
        [
            ("embedding", pa.list_(number, document.dim)),
            ("label", names),
            ("label_id", pa.int32()),
            *((column, names) for column in document.columns),
        ]
    )


def _metadata(receipt: Receipt) -> dict[str, str]:
    return {RECEIPT_KEY: json.dumps(dict(receipt), sort_keys=True)}


def batch_of(document: Document, block: Block, schema: pa.Schema) -> pa.RecordBatch:
    flat = pa.array(document.embeddings(block).reshape(-1))
    columns = [
        pa.FixedSizeListArray.from_arrays(flat, document.dim),
        _dictionary(block.y, document.classes),
        pa.array(block.y, pa.int32()),
        *(_dictionary(block.source, document.names(column)) for column in document.columns),
    ]
    return pa.record_batch(columns, schema=schema)


def arrow_pieces(document: Document) -> Iterator[bytes]:
    """An IPC stream, one batch a block. The opening receipt is in the schema's metadata."""
    sink = Sink()
    schema = schema_of(document).with_metadata(_metadata(document.receipt))
    with pa.ipc.new_stream(sink, schema) as writer:
        for block in document.read():
            writer.write_batch(batch_of(document, block, schema))
            yield sink.take()
    yield sink.take()


def parquet_pieces(document: Document) -> Iterator[bytes]:
    """A file, written as it grows: its index, and the closed receipt with it, stand at the end."""
    sink, waiting, reading = Sink(), list[pa.RecordBatch](), document.read()
    names, schema = ["label", *document.columns], schema_of(document)
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=names) as writer:
        for number, block in enumerate(reading, start=1):
            waiting.append(batch_of(document, block, schema))
            if number % _GROUP_BLOCKS == 0 or number == len(document.rows):
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
            yield sink.take()
        writer.add_key_value_metadata(_metadata(reading.receipt))
    yield sink.take()


def csv_pieces(document: Document) -> Iterator[bytes]:
    """``label``, ``label_id``, the columns asked for, ``e0`` to ``e{d-1}``; RFC 4180, UTF-8."""
    for number, block in enumerate(document.read()):
        sink = Sink()
        options = pyarrow.csv.WriteOptions(include_header=number == 0)
        pyarrow.csv.write_csv(_flat(document, block), sink, options)
        yield sink.take()


def _flat(document: Document, block: Block) -> pa.Table:
    x = document.embeddings(block).T
    texts = {"label": np.array(document.classes)[block.y], "label_id": block.y.astype(np.int32)}
    for column in document.columns:
        texts[column] = np.array(document.names(column))[block.source]
    numbers = x.astype(np.float32) if x.dtype == np.float16 else x  # the same numbers
    return pa.table(texts | {f"e{place}": row for place, row in enumerate(numbers)})
