"""A site's records: load, check, group into privacy units, scale one by one.

Nothing here is fitted to the data: the only scaling is per record (onto the sphere of radius
sqrt(d)), because a mean, a range or a projection learnt from private records would be a release.
"""

from __future__ import annotations

import hashlib
import hmac
import zipfile
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.errors import (
    DataEmpty,
    DataNotFinite,
    DataNotFound,
    DataUnknownClass,
    DataUnreadable,
    DataWrongWidth,
)
from core.federation.plan import EmbeddingSpace

_SHOWN = 10  # how many row numbers an error lists
_EXACT = 2.0**53  # beyond it neighbouring integers are one float


@dataclass(frozen=True, eq=False)
class EmbeddingDataset:
    """Records of one site, in any order; results do not depend on it.

    ``x`` float32 [n, d] raw embeddings, ``y`` int64 [n] class ids, ``unit`` the privacy unit of
    each record as bytes, ``valid`` bool [n]. A record that is not finite or has no direction
    stays in the set but contributes a zero vector: dropping it loudly would be a release.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    unit: tuple[bytes, ...]
    valid: NDArray[np.bool_] = field(repr=False)

    @classmethod
    def from_arrays(
        cls,
        x: NDArray[np.generic],
        y: NDArray[np.generic],
        unit: tuple[bytes, ...] | None = None,
    ) -> EmbeddingDataset:
        """From arrays [n, d] and [n]; without ``unit`` each record is its own unit.

        Record units are named by content (and a running number among identical records), never
        by position: removing one record must not rename another (see ``core.privacy.coins``).
        """
        x32 = np.ascontiguousarray(x, dtype=np.float32)
        y64 = np.ascontiguousarray(y, dtype=np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(x32.astype(np.float64), axis=1)
        valid = np.isfinite(norms) & (norms > 0)
        units = unit if unit is not None else _record_units(x32, y64)
        if not len(x32) == len(y64) == len(units):
            raise ValueError("x, y and unit must have the same length")
        return cls(x32, y64, units, valid)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def invalid_rows(self) -> list[int]:
        """Row numbers (from 0) that contribute nothing. For the site's own eyes."""
        return [int(row) for row in np.flatnonzero(~self.valid)]

    @cached_property
    def unit_ids(self) -> tuple[bytes, ...]:
        """Distinct units, sorted; a unit's place here carries no meaning."""
        return tuple(sorted(set(self.unit)))

    @cached_property
    def unit_of(self) -> NDArray[np.int64]:
        """[n] index into ``unit_ids`` of each record."""
        place = {unit: index for index, unit in enumerate(self.unit_ids)}
        return np.fromiter((place[u] for u in self.unit), np.int64, len(self))

    @cached_property
    def record_keys(self) -> tuple[bytes, ...]:
        """A stable name of each record: its unit and its content's rank within the unit.

        Keys the latent draws, so that they depend on nothing outside the unit.
        """
        contents = [_content(self.x[i], int(self.y[i])) for i in range(len(self))]
        members: defaultdict[bytes, list[int]] = defaultdict(list)
        for row, unit in enumerate(self.unit):
            members[unit].append(row)
        keys = [b""] * len(self)
        for unit, rows in members.items():
            for rank, row in enumerate(sorted(rows, key=contents.__getitem__)):
                keys[row] = unit + b"\0" + rank.to_bytes(4, "little")
        return tuple(keys)

    @cached_property
    def directions(self) -> NDArray[np.float64]:
        """x / |x| [n, d]; zero rows where a record is not valid."""
        x = np.where(self.valid[:, None], self.x, 0.0).astype(np.float64)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        return np.asarray(x / np.where(norms > 0, norms, 1.0))

    def require_finite(self) -> None:
        """Raise ``DataNotFinite`` naming the rows that would contribute nothing (local checks)."""
        rows = self.invalid_rows
        if rows:
            raise DataNotFinite(
                f"{len(rows)} of {len(self)} records hold NaN, infinity or only zeros: "
                f"rows {_some(rows)}.",
                field="x",
                mend="Recompute or remove these records; while they stay they contribute nothing.",
                rows=len(rows),
            )

    def fingerprint(self, key: bytes) -> str:
        """HMAC-SHA256 under a key of the site over the records in canonical order. Never sent."""
        lines = sorted(
            unit + b"\0" + _content(self.x[i], int(self.y[i])) for i, unit in enumerate(self.unit)
        )
        mac = hmac.new(key, b"fhv-dataset\0", hashlib.sha256)
        for line in lines:
            mac.update(len(line).to_bytes(8, "little") + line)
        return mac.hexdigest()


def _content(x: NDArray[np.float32], y: int) -> bytes:
    return hashlib.blake2b(x.tobytes() + y.to_bytes(8, "little", signed=True)).digest()


def _record_units(x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[bytes, ...]:
    seen: defaultdict[bytes, int] = defaultdict(int)
    units = []
    for row in range(len(y)):
        content = _content(x[row], int(y[row]))
        units.append(content + seen[content].to_bytes(4, "little"))
        seen[content] += 1
    return tuple(units)


def _some(rows: list[int]) -> str:
    listed = ", ".join(str(row) for row in rows[:_SHOWN])
    return listed + (", ..." if len(rows) > _SHOWN else "")


def load(
    path: Path, space: EmbeddingSpace, *, unit: str, for_round: bool = False
) -> EmbeddingDataset:
    """Records of a ``.npz``, ``.npy`` or ``.parquet`` file that satisfy the space's contract.

    npz: arrays ``x`` [n, d], ``y`` [n] (class ids or names) and, if ``unit`` is not "record",
    ``unit`` [n]. npy: a structured array with these fields. parquet: columns ``x`` (or
    ``embedding``; lists of d numbers), ``y`` (or ``label``) and ``unit``. Pickled objects are
    never loaded. Raises a ``DataError`` that names what to mend; NaN rows are kept as invalid.

    With ``for_round`` nothing that one record decides is an error, because whether a site fails is
    seen from outside: records whose class is not in the vocabulary (which the coordinator sends!)
    or that name no unit are kept as invalid, like NaN rows, and a file without records is legal.
    """
    if not path.is_file():
        raise DataNotFound(
            f"no data file at {path}.", field="data", mend="Set `data` in the site configuration."
        )
    try:
        columns = _read(path)
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        pa.ArrowException,
    ) as error:
        raise DataUnreadable(
            f"cannot read {path}: {error}.", field="data", mend="Write npz, npy or parquet."
        ) from error
    for name in ("x", "y"):
        if name not in columns:
            raise DataUnreadable(
                f"{path} has no {name!r}; it holds {sorted(columns)}.", field=name,
                mend="Store embeddings as 'x' [n, d] and classes as 'y' [n].",
            )  # fmt: skip
    x, y = columns["x"], columns["y"]
    if x.ndim != 2 or x.dtype.kind not in "fiu":
        raise DataUnreadable(
            f"x must be numbers [n, {space.dim}], found {x.dtype} {list(x.shape)}.", field="x"
        )
    if x.shape[1] != space.dim:
        raise DataWrongWidth(
            f"embeddings are {x.shape[1]} wide, space {space.name!r} says {space.dim}.",
            field="x",
            mend=f"Embed with {space.backbone} ({space.weights_digest[:19]}...).",
            found=int(x.shape[1]),
            expected=space.dim,
        )
    if len(x) == 0 and not for_round:
        raise DataEmpty(
            f"{path} holds no records.", field="x", mend="Point `data` at a filled file."
        )
    if y.shape != (len(x),):
        raise DataUnreadable(f"y must be [{len(x)}], found {list(y.shape)}.", field="y")
    ids = _class_ids(y, space)
    usable = ids >= 0
    if not (for_round or usable.all()):
        wrong = np.flatnonzero(~usable)
        raise DataUnknownClass(
            f"{len(wrong)} records have a class outside the vocabulary of {space.name!r}, "
            f"first {y[wrong[0]]!r}, in rows {_some([int(w) for w in wrong])}.",
            field="y",
            mend=f"Use class ids 0 to {len(space.classes) - 1} or the contract's class names.",
        )
    units = None
    if unit != "record":
        if "unit" not in columns:
            raise DataUnreadable(
                f"the privacy unit is {unit!r} but {path} has no 'unit' column.",
                field="unit",
                mend=f"Add one {unit} identifier per record.",
            )
        if columns["unit"].shape != (len(x),):
            raise DataUnreadable(f"unit must be [{len(x)}].", field="unit")
        names = columns["unit"].tolist()
        unnamed = np.array([_names_no_unit(name) for name in names], dtype=bool)
        if unnamed.any() and not for_round:
            rows = [int(row) for row in np.flatnonzero(unnamed)]
            raise DataUnreadable(
                f"{len(rows)} records name no {unit}: rows {_some(rows)}.",
                field="unit",
                mend=f"Give each record its {unit}'s identifier, as text or as an integer.",
            )
        units = tuple(
            b"" if none else str(name).encode() for name, none in zip(names, unnamed, strict=True)
        )
        usable &= ~unnamed
    dataset = EmbeddingDataset.from_arrays(x, ids, units)
    return replace(dataset, valid=dataset.valid & usable)


def _names_no_unit(name: object) -> bool:
    """Missing, or a float that stands for several integers.

    Taken as a name, it would put records of different people into one unit; removing one of them
    would then change what the others contribute, by up to twice the sensitivity that is booked.
    """
    if isinstance(name, float):
        return not abs(name) < _EXACT
    return name is None or name in ("", b"")


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    if path.suffix == ".npz":
        # Opened here: numpy leaves the file of a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix == ".npy":
        table = np.load(path, allow_pickle=False)
        return {name: table[name] for name in table.dtype.names or ()}
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        alias = {"embedding": "x", "label": "y"}
        return {alias.get(n, n): _column(table.column(n)) for n in table.column_names}
    raise ValueError(f"unknown ending {path.suffix!r}")


def _column(column: pa.ChunkedArray) -> NDArray[np.generic]:
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return np.array(column.to_pylist(), dtype=np.float32)
    if column.null_count:  # numpy would make floats of integers, and NaN or "None" of nulls
        return np.array(column.to_pylist(), dtype=object)
    return np.asarray(column.to_numpy())


def _class_ids(y: NDArray[np.generic], space: EmbeddingSpace) -> NDArray[np.int64]:
    """Ids 0..C-1 from ids or names, one by one; -1 outside the contract's vocabulary."""
    known: dict[object, int] = {name: index for index, name in enumerate(space.classes)}
    known.update({index: index for index in range(len(space.classes))})
    # By the type of each value, not of the column, which one odd record may change.
    return np.array(
        [known.get(value, -1) if type(value) in (int, str) else -1 for value in y.tolist()],
        dtype=np.int64,
    )
