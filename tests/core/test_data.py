"""A site's files: what loads, and a clear error for everything that does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import errors
from core.data import EmbeddingDataset, load
from core.storage import ObjectStore, sha256_of
from tests.core import worlds

SPACE = worlds.space()
DATA = worlds.clusters(20)


def npz(folder: Path, **arrays: object) -> Path:
    path = folder / "site.npz"
    np.savez(path, **{"x": DATA.x, "y": DATA.y, **arrays})  # type: ignore[arg-type]
    return path


def test_npz_npy_and_parquet_hold_the_same_records(tmp_path: Path) -> None:
    one = load(npz(tmp_path), SPACE, unit="record")
    table = np.empty(20, dtype=[("x", np.float32, (12,)), ("y", "U10")])
    table["x"], table["y"] = DATA.x, [SPACE.classes[c] for c in DATA.y]
    np.save(tmp_path / "site.npy", table)
    two = load(tmp_path / "site.npy", SPACE, unit="record")
    pq.write_table(
        pa.table({"embedding": list(DATA.x), "label": [SPACE.classes[c] for c in DATA.y]}),
        tmp_path / "site.parquet",
    )
    three = load(tmp_path / "site.parquet", SPACE, unit="record")
    for other in (two, three):
        np.testing.assert_array_equal(other.x, one.x)
        np.testing.assert_array_equal(other.y, one.y)
        assert other.fingerprint(b"k") == one.fingerprint(b"k")


def test_units_group_records(tmp_path: Path) -> None:
    data = load(npz(tmp_path, unit=np.arange(20) // 5), SPACE, unit="patient")
    assert data.unit_ids == (b"0", b"1", b"2", b"3")
    np.testing.assert_array_equal(np.bincount(data.unit_of), [5, 5, 5, 5])


NAN = DATA.x.copy()
NAN[[2, 7]] = np.nan


@pytest.mark.parametrize(
    ("arrays", "unit", "error", "words"),
    [
        ({"x": DATA.x[:, :5]}, "record", errors.DataWrongWidth, "5 wide, space 'clusters' says 12"),
        ({"y": np.full(20, 3)}, "record", errors.DataUnknownClass, "class ids 0 to 2"),
        ({"y": np.full(20, -1)}, "record", errors.DataUnknownClass, "rows 0, 1"),
        ({"y": np.full(20, "cat")}, "record", errors.DataUnknownClass, "cat"),
        ({"x": DATA.x[:0], "y": DATA.y[:0]}, "record", errors.DataEmpty, "no records"),
        ({"y": DATA.y[:3]}, "record", errors.DataUnreadable, r"y must be \[20\]"),
        ({"x": DATA.x[0]}, "record", errors.DataUnreadable, "x must be numbers"),
        ({"x": np.full((20, 12), "a")}, "record", errors.DataUnreadable, "x must be numbers"),
        ({}, "patient", errors.DataUnreadable, "no 'unit' column"),
        ({"unit": np.arange(3)}, "patient", errors.DataUnreadable, r"unit must be \[20\]"),
        ({"unit": ["p"] * 18 + ["", ""]}, "patient", errors.DataUnreadable, "rows 18, 19"),
        ({"unit": [1.0] * 19 + [np.nan]}, "patient", errors.DataUnreadable, "name no patient"),
        ({"unit": [1.0] * 19 + [2.0**53]}, "patient", errors.DataUnreadable, "rows 19"),
    ],
)
def test_bad_files_say_what_to_mend(
    tmp_path: Path,
    arrays: dict[str, object],
    unit: str,
    error: type[errors.DataError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        load(npz(tmp_path, **arrays), SPACE, unit=unit)


def test_missing_foreign_and_pickled_files(tmp_path: Path) -> None:
    with pytest.raises(errors.DataNotFound, match="no data file"):
        load(tmp_path / "nowhere.npz", SPACE, unit="record")
    for name, content in {
        "a.npz": b"junk",
        "b.parquet": b"junk",
        "c.txt": b"",
        "d.npz": b"",
        "cut.npz": npz(tmp_path).read_bytes()[:900],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(errors.DataUnreadable, match="cannot read"):
            load(tmp_path / name, SPACE, unit="record")
    np.savez(tmp_path / "e.npz", x=np.array([object()]), y=np.array([0]))
    with pytest.raises(errors.DataUnreadable, match="pickle"):
        load(tmp_path / "e.npz", SPACE, unit="record")
    np.savez(tmp_path / "f.npz", x=DATA.x)
    with pytest.raises(errors.DataUnreadable, match="no 'y'"):
        load(tmp_path / "f.npz", SPACE, unit="record")


def test_nan_rows_are_kept_as_invalid_and_named_on_request(tmp_path: Path) -> None:
    data = load(npz(tmp_path, x=NAN), SPACE, unit="record")
    assert data.invalid_rows == [2, 7]
    assert not data.directions[[2, 7]].any()
    with pytest.raises(errors.DataNotFinite, match="rows 2, 7"):
        data.require_finite()
    DATA.require_finite()


def test_parquet_units_with_nulls_keep_their_names_and_merge_nobody(tmp_path: Path) -> None:
    path = tmp_path / "site.parquet"
    units = pa.array([2**53, 2**53 + 1, None], pa.int64())
    pq.write_table(pa.table({"x": list(DATA.x[:3]), "y": [0, 1, None], "unit": units}), path)
    with pytest.raises(errors.DataUnknownClass, match="1 records"):
        load(path, SPACE, unit="patient")
    data = load(path, SPACE, unit="patient", for_round=True)
    assert data.unit[:2] == (b"9007199254740992", b"9007199254740993")
    assert data.invalid_rows == [2]
    np.testing.assert_array_equal(data.y[:2], [0, 1])
    pq.write_table(pa.table({"x": list(DATA.x[:2]), "y": [0, 1], "unit": units[:2]}), path)
    with pytest.raises(errors.DataUnreadable, match="no 'unit'"):
        load(npz(tmp_path), SPACE, unit="patient", for_round=True)  # a file's fault, no record's
    without = load(path, SPACE, unit="patient", for_round=True)
    assert without.unit == data.unit[:2]  # removing a record renames no other
    np.testing.assert_array_equal(without.y, data.y[:2])


def test_in_a_round_one_record_decides_no_error(tmp_path: Path) -> None:
    strangers = np.where(np.arange(20) == 4, 3, DATA.y)
    data = load(npz(tmp_path, y=strangers), SPACE, unit="record", for_round=True)
    assert data.invalid_rows == [4]
    assert len(load(npz(tmp_path, x=DATA.x[:0], y=[]), SPACE, unit="record", for_round=True)) == 0


@given(st.permutations(range(12)), st.integers(0, 11))
@settings(deadline=None, max_examples=25)
def test_names_of_records_depend_on_content_not_place(order: list[int], removed: int) -> None:
    data = worlds.with_units(worlds.clusters(12), np.arange(12) // 4)
    moved = EmbeddingDataset.from_arrays(
        data.x[order], data.y[order], tuple(data.unit[i] for i in order)
    )
    assert [moved.record_keys[order.index(i)] for i in range(12)] == list(data.record_keys)
    assert moved.fingerprint(b"k") == data.fingerprint(b"k")
    assert moved.fingerprint(b"other") != data.fingerprint(b"k")
    less = worlds.without_unit(data, data.unit[removed])
    assert less.fingerprint(b"k") != data.fingerprint(b"k")
    assert set(less.record_keys) < set(data.record_keys)


def test_identical_records_are_distinct_units() -> None:
    data = EmbeddingDataset.from_arrays(np.ones((3, 4)), np.zeros(3, dtype=np.int64))
    assert len(set(data.unit)) == 3


# --- stored objects ---


def test_objects_are_stored_once_verified_and_missed_clearly(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}/objects")
    first = store.put(b"weights")
    assert store.put(b"weights") == first
    assert first.digest == sha256_of(b"weights")
    assert store.get(first.digest) == b"weights"
    assert store.exists(first.digest)
    missing = sha256_of(b"else")
    assert not store.exists(missing)
    for digest in (missing, "md5:00", "sha256:../../etc/passwd"):
        with pytest.raises(errors.ObjectMissing):
            store.get(digest)
    [path] = [p for p in (tmp_path / "objects").rglob("*") if p.is_file()]
    path.write_bytes(b"altered")
    with pytest.raises(errors.ObjectCorrupt):
        store.get(first.digest)
    # A power cut before the flush: the name is there, the bytes are not. A resend mends it.
    path.write_bytes(b"")
    assert store.put(b"weights") == first
    assert store.get(first.digest) == b"weights"
    with pytest.raises(ValueError, match="scheme"):
        ObjectStore("/no/scheme")
