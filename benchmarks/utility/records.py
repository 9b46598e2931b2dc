"""The benchmark's records: the built-in scanner digits, or an npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import scanner_digits
from benchmarks.utility.refused import Refused
from core.federation.plan import EmbeddingSpace
from core.storage import sha256_of

Unit = Literal["record", "patient"]

LEAST_UNITS = 20  # fewer leave no test set on which anything could be measured


@dataclass(frozen=True, eq=False)
class Records:
    """All records; ``groups`` [n] numbers the units, ``domain`` [n] the clients if they are given.

    ``domains`` are the names of the given clients. ``held_out`` draws the test rows of one seed
    [n] bool; None: a share of the units.
    """

    name: str
    space: EmbeddingSpace
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    groups: NDArray[np.int64]
    unit: Unit
    domain: NDArray[np.int64] | None = None
    domains: tuple[str, ...] = ()
    held_out: Callable[[int], NDArray[np.bool_]] | None = None


def load(source: Path | None) -> Records:
    """Records of an npz file, or the built-in ones. Raises ``Refused``."""
    return built_in() if source is None else from_file(source)


def built_in() -> Records:
    """Scanner digits: three sites as they are dealt, held-out images drawn anew for each seed."""
    data = scanner_digits.load()
    x = np.concatenate([a for s in data.sites for a in (s.train_x, s.test_x)])
    y = np.concatenate([a for s in data.sites for a in (s.train_y, s.test_y)])
    sizes = [len(s.train_y) + len(s.test_y) for s in data.sites]
    domain = np.repeat(np.arange(len(sizes)), sizes)

    def held_out(seed: int) -> NDArray[np.bool_]:
        own = [
            scanner_digits.hold_out(y[domain == d], seed=scanner_digits.SEED + seed)
            for d in range(len(sizes))
        ]
        return np.concatenate(own)

    return Records(
        name="scanner-digits", space=data.space, x=x, y=y, groups=np.arange(len(y)), unit="record",
        domain=domain, domains=tuple(s.scanner for s in data.sites), held_out=held_out,
    )  # fmt: skip


def from_file(path: Path) -> Records:
    """Records of ``x`` [n, d], ``y`` [n] and, if present, ``domain`` [n] and ``unit`` [n].

    Classes are the distinct values of ``y`` in order, clients those of ``domain``; with ``unit``
    the privacy unit is the patient. Raises ``Refused``.
    """
    columns = _columns(path)
    x = _embeddings(columns)
    names, y = _numbered(columns, "y", len(x))
    if len(names) < 2:
        raise Refused("y", f"one class only ({names[0]})", "give records of two or more classes")
    groups = np.arange(len(y))
    if "unit" in columns:
        groups = _numbered(columns, "unit", len(x))[1]
    if len(np.unique(groups)) < LEAST_UNITS:
        raise Refused("x", f"fewer than {LEAST_UNITS} records or units", "give more of them")
    domains: tuple[str, ...] = ()
    domain = None
    if "domain" in columns:
        domains, domain = _numbered(columns, "domain", len(x))
    space = EmbeddingSpace(
        name="benchmark", backbone=path.name, weights_digest=sha256_of(x.tobytes()),
        preprocessing="as stored", dim=x.shape[1], classes=names,
    )  # fmt: skip
    unit: Unit = "patient" if "unit" in columns else "record"
    return Records(path.stem, space, x, y, groups, unit, domain, domains)


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise Refused("--data", f"there is no file {path}", "give the path of an npz file")
    try:
        # Opened here: numpy leaves the file open where it turns out to be no archive.
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            return {name: stored[name] for name in stored.files}
    except (AttributeError, OSError, EOFError, ValueError, zipfile.BadZipFile):
        # AttributeError: an .npy file is one array, which has no columns.
        raise Refused(
            "--data",
            f"{path} is no npz file of plain arrays",
            "write it with numpy.savez(file, x=..., y=...)",
        ) from None


def _embeddings(columns: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    x = columns.get("x")
    if x is None:
        raise Refused("x", "the file has no such column", "store the embeddings as x [n, d]")
    if x.ndim != 2 or x.shape[1] < 2 or x.dtype.kind not in "fiu":
        shape = f"{x.dtype} {list(x.shape)}"
        raise Refused("x", f"expected numbers [n, d] with d >= 2, found {shape}", "reshape it")
    with np.errstate(over="ignore"):
        narrow = np.asarray(x, np.float32)
        norms = np.linalg.norm(narrow.astype(np.float64), axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise Refused(
            "x",
            f"{len(bad)} rows are NaN, infinite or zero, the first is row {bad[0]}",
            "remove these rows (from all columns)",
        )
    return narrow


def _numbered(
    columns: dict[str, NDArray[Any]], name: str, rows: int
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of a column's distinct values in order, and the number of each row's value [n]."""
    column = columns.get(name)
    if column is None:
        raise Refused(name, "the file has no such column", "store one class per record as y [n]")
    if column.shape != (rows,):
        found = list(column.shape)
        raise Refused(name, f"expected [{rows}] as x has, found {found}", "give one value a record")
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        raise Refused(name, "holds NaN or infinity", "remove these rows (from all columns)")
    distinct, number = np.unique(column, return_inverse=True)
    return tuple(str(value) for value in distinct), number.astype(np.int64)
