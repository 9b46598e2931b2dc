"""numpy's own files: a table of records (npy), or an archive of arrays (npz)."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator

import numpy as np

from core.synthesis.formats.document import Document, Receipt, Sink

_DATE = (1980, 1, 1, 0, 0, 0)  # zip files carry a time; the same request gives the same bytes


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, facts)
    return head.getvalue()


def npy_pieces(document: Document) -> Iterator[bytes]:
    """Records [n] with the fields ``x`` [d], ``y`` (class ids) and, where columns were asked for,
    their texts.
    """
    fields: list[tuple[object, ...]] = [("x", document.dtype, (document.dim,)), ("y", "<i4")]
    names = {column: np.array(document.names(column)) for column in document.columns}
    fields += [(column, texts.dtype) for column, texts in names.items()]
    dtype = np.dtype(fields)
    yield _header(dtype, (document.n,))
    for block in document.read():
        records = np.empty(len(block.y), dtype)
        records["x"], records["y"] = block.x, block.y
        for column, texts in names.items():
            records[column] = texts[block.source]
        yield records.tobytes()


def npz_pieces(document: Document) -> Iterator[bytes]:
    """``embeddings`` [n, d], ``label_ids`` [n], ``classes`` [C], ``sources`` [n] and the names of
    the columns asked for [K], ``receipt`` (JSON text). Not compressed: ``numpy.load`` reads it.
    """
    sink, reading = Sink(), document.read()
    with zipfile.ZipFile(sink, "w") as archive:
        with archive.open(_entry("embeddings"), "w", force_zip64=True) as file:
            file.write(_header(np.dtype(document.dtype), (document.n, document.dim)))
            for block in reading:
                file.write(document.embeddings(block).data)
                yield sink.take()
        for name, values in _small(document, reading.receipt).items():
            with archive.open(_entry(name), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
            yield sink.take()
    yield sink.take()


def _small(document: Document, receipt: Receipt) -> dict[str, np.ndarray]:
    """Everything but the embeddings; labels and codes are drawn again, which costs next to
    nothing, so that they need not wait in memory.
    """
    rows = document.rows
    found = {
        "label_ids": np.concatenate(
            [rows.labels.block(block).astype(np.int32) for block in range(len(rows))]
        ),
        "classes": np.array(document.classes),
    }
    if document.columns:
        sources = [rows.sources_of(block) for block in range(len(rows))]
        found["sources"] = np.concatenate(sources).astype(np.int32)
    for column in document.columns:
        found[f"{column}s"] = np.array(document.names(column))
    found["receipt"] = np.array(json.dumps(dict(receipt), sort_keys=True))
    return found


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{name}.npy", date_time=_DATE)
