"""Files of rows from others, as `fedhypevae verify` reads them: one clear error, little memory."""

from __future__ import annotations

import io
import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import FileUnreadable
from core.receipts.reading import read_rows

_MIB = 2**20


def _npy(shape: tuple[int, ...], data: bytes) -> bytes:
    """An array's file that declares any shape."""
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        sink, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return sink.getvalue() + data


def _npz(path: Path, arrays: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)


def _zip_bomb(path: Path) -> None:
    zeros = _npy((128 * _MIB // 4,), bytes(128 * _MIB))
    _npz(path, {"embeddings": zeros, "label_ids": zeros}, zipfile.ZIP_DEFLATED)


def _declared(path: Path) -> None:
    _npz(path, {"embeddings": _npy((2**40, 1280), b""), "label_ids": _npy((1,), bytes(4))})


def _pickled(path: Path) -> None:
    sink = io.BytesIO()
    np.save(sink, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    _npz(path, {"embeddings": sink.getvalue(), "label_ids": sink.getvalue()})


def _wide(path: Path) -> None:
    """Kilobytes that stand for 64 million numbers."""
    lists = pa.array([[0.0] * 1_000_000] * 64, pa.list_(pa.float32()))
    table = pa.table({"embedding": lists, "label_id": pa.array([0] * 64, pa.int32())})
    pq.write_table(table, path, compression="zstd")


def _renamed(path: Path) -> None:
    pq.write_table(pa.table({"embedding": pa.array([1.0])}), path)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "npz bomb": _zip_bomb,
    "npz that declares 5 TiB": _declared,
    "npz with objects": _pickled,
    "npz without arrays": lambda path: _npz(path, {}),
    "half a zip": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(40)),
    "parquet bomb": _wide,
    "parquet of numbers": _renamed,
    "half a parquet": lambda path: path.write_bytes(b"PAR1" + bytes(40)),
    "arrow": lambda path: path.write_bytes(b"\xff" * 4 + b"\x7f" * 60),
    "deep JSON": lambda path: path.write_bytes(b'{"a":' * 200_000),
    "list": lambda path: path.write_text("[1]"),
    "JSON of texts": lambda path: path.write_text(json.dumps({"embeddings": "x"})),
    "nothing": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_error_and_costs_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    HOSTILE[name](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FileUnreadable) as caught:
        read_rows(path)
    assert "cannot read" in caught.value.message
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 64 * _MIB
