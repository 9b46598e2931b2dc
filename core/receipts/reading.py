"""Rows and receipts out of files, in every format that ``/synthesize`` writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.errors import FileUnreadable
from core.synthesis.formats import RECEIPT_KEY
from core.synthesis.rows import Block
from core.synthesis.streams import BLOCK_ROWS

_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile,
    pa.ArrowException, MemoryError, RecursionError,
)  # fmt: skip
_MAX_DIM = 65_536  # of an embedding space
Part = tuple[NDArray[np.floating], NDArray[np.integer]]


@dataclass(frozen=True, eq=False)
class RowsFile:
    """``receipt``: the signed one inside, or None. ``parts``: (x [n, d], class ids [n]) in order;
    empty for a file that is a receipt and nothing else. ``dtype`` of the embeddings.
    """

    receipt: dict[str, Any] | None
    parts: Iterable[Part]
    dtype: str

    def blocks(self) -> Iterator[Block]:
        """As they were made: 4,096 rows each, the last one shorter."""
        x: list[NDArray[np.float32]] = []
        y: list[NDArray[np.int64]] = []
        waiting = 0
        for rows, labels in self.parts:
            x.append(np.asarray(rows, np.float32))
            y.append(np.asarray(labels, np.int64))
            waiting += len(labels)
            if waiting >= BLOCK_ROWS:
                all_x, all_y = np.concatenate(x), np.concatenate(y)
                whole = waiting - waiting % BLOCK_ROWS
                for start in range(0, whole, BLOCK_ROWS):
                    place = slice(start, start + BLOCK_ROWS)
                    yield _block(all_x[place], all_y[place])
                x, y, waiting = [all_x[whole:]], [all_y[whole:]], waiting - whole
        if waiting:
            yield _block(np.concatenate(x), np.concatenate(y))


def _block(x: NDArray[np.float32], y: NDArray[np.int64]) -> Block:
    return Block(x, y, np.zeros(len(y), np.int64))


def read_rows(path: Path) -> RowsFile:
    """A file that ``/synthesize`` answered with, by its first bytes. Parquet and Arrow are read in
    constant memory. Raises ``FileUnreadable``.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
        return _reader(head)(path)
    except _DAMAGE as error:
        raise FileUnreadable(
            f"cannot read {path}: {str(error).partition(chr(10))[0]}",
            field="file",
            mend="Give a Parquet, Arrow, npz or JSON answer of /synthesize, or a receipt.",
        ) from error


def _reader(head: bytes) -> Callable[[Path], RowsFile]:
    if head.startswith(b"PAR1"):
        return _parquet
    if head.startswith(b"PK"):
        return _npz
    if head.startswith(b"\xff\xff\xff\xff"):
        return _arrow
    if head.startswith(b"{"):
        return _json
    raise ValueError("neither Parquet, Arrow, npz nor JSON")


def _batch(batch: pa.RecordBatch) -> Part:
    column = batch.column("embedding")
    x = column.flatten().to_numpy(zero_copy_only=False)
    return x.reshape(len(column), -1), batch.column("label_id").to_numpy()


def _parquet(path: Path) -> RowsFile:
    file = pq.ParquetFile(path)
    _not_blown_up(file)
    inside = (file.metadata.metadata or {}).get(RECEIPT_KEY.encode())
    dtype = str(file.schema_arrow.field("embedding").type.value_type)
    parts = (_batch(batch) for batch in file.iter_batches(BLOCK_ROWS))
    return RowsFile(None if inside is None else json.loads(inside), parts, _numpy_name(dtype))


def _not_blown_up(file: pq.ParquetFile) -> None:
    """A few bytes can stand for lists of any length, and a batch of rows is held in memory."""
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        for place in range(group.num_columns):
            if group.column(place).num_values > _MAX_DIM * max(group.num_rows, 1):
                raise ValueError("its rows are wider than any embedding")


def _arrow(path: Path) -> RowsFile:
    reader = pa.ipc.open_stream(pa.memory_map(str(path)))
    inside = (reader.schema.metadata or {}).get(RECEIPT_KEY.encode())
    dtype = str(reader.schema.field("embedding").type.value_type)
    parts = (_batch(batch) for batch in reader)
    return RowsFile(None if inside is None else json.loads(inside), parts, _numpy_name(dtype))


def _numpy_name(arrow: str) -> str:
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(arrow, arrow)


def _npz(path: Path) -> RowsFile:
    with ZipFile(path) as archived:
        # Ours are stored as they are; a packed one of some megabytes may hold terabytes.
        if any(each.compress_type != ZIP_STORED for each in archived.infolist()):
            raise ValueError("its arrays are compressed")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        x, y = archive["embeddings"], archive["label_ids"]
        receipt = json.loads(str(archive["receipt"]))
    return RowsFile(receipt, [(x, y)], str(x.dtype))


def _json(path: Path) -> RowsFile:
    found = json.loads(path.read_bytes())
    if "signature" in found:
        return RowsFile(found, (), "")
    x = np.asarray(found["embeddings"], np.float64)
    half = bool((x == x.astype(np.float16)).all())  # JSON does not name its number type
    y = np.asarray(found["label_ids"])
    return RowsFile(found.get("receipt"), [(x, y)], "float16" if half else "float64")
