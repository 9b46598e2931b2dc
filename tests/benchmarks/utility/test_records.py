"""Fair splits of whole units, and files that cannot be used."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.utility.records import Records, from_file
from benchmarks.utility.refused import Refused
from benchmarks.utility.splits import Settings, declared_bound, split
from tests.core import worlds

SETTINGS = Settings(clients=4, alpha=0.5, train=0.6)


def rows_of(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


def test_every_record_is_dealt_once_to_a_client_or_to_the_test(file: Path) -> None:
    data = from_file(file)
    parts = split(data, SETTINGS, 0)
    pieces = [rows_of(site.x) for site in parts.sites] + [rows_of(parts.test_x)]
    assert sum(len(piece) for piece in pieces) == 300
    assert set.union(*pieces) == rows_of(data.x)
    assert len(parts.test_y) == 120
    assert len(parts.sites) == len(parts.names) == 4


def test_a_seed_names_a_split(file: Path) -> None:
    data = from_file(file)
    one, again, other = (split(data, SETTINGS, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.sites[2].x, again.sites[2].x)
    assert rows_of(one.test_x) != rows_of(other.test_x)


def test_a_clients_test_records_have_its_class_mix() -> None:
    data = worlds.clusters(6_000)
    records = Records("own", worlds.space(), data.x, data.y, np.arange(6_000), "record")
    parts = split(records, SETTINGS, 0)
    assert len(parts.test_owner) == len(parts.test_y)
    for client, site in enumerate(parts.sites):
        trained = np.bincount(site.y, minlength=3) / len(site)
        mine = parts.test_y[parts.test_owner == client]
        np.testing.assert_allclose(np.bincount(mine, minlength=3) / len(mine), trained, atol=0.06)


def test_units_stay_whole_and_domains_are_clients(tmp_path: Path) -> None:
    data = worlds.clusters(240)
    units = np.arange(240) // 6
    path = tmp_path / "patients.npz"
    np.savez(path, x=data.x, y=data.y, unit=units, domain=np.array(["a", "b", "c"])[units % 3])
    found = from_file(path)
    assert found.unit == "patient"
    parts = split(found, SETTINGS, 0)
    assert parts.names == ("a", "b", "c")
    owners = [set(site.unit) for site in parts.sites]
    assert len(set.union(*owners)) == sum(len(owner) for owner in owners) == 24
    assert sum(len(site) for site in parts.sites) == 24 * 6
    assert len(parts.test_y) == 16 * 6
    domain_of = {row.tobytes(): d for row, d in zip(found.x, found.domain, strict=True)}
    assert [domain_of[row.tobytes()] for row in parts.test_x] == parts.test_owner.tolist()
    assert parts.n_max in (10, 20)  # units, not records


def test_held_out_rows_of_the_data_set_are_respected() -> None:
    data = worlds.clusters(30)
    mask = np.arange(30) % 3 == 0
    own = Records(
        "own", worlds.space(), data.x, data.y, np.arange(30), "record",
        np.arange(30) // 15, ("a", "b"), lambda seed: np.roll(mask, seed),
    )  # fmt: skip
    assert rows_of(split(own, SETTINGS, 1).test_x) == rows_of(data.x[np.roll(mask, 1)])


@pytest.mark.parametrize(
    ("largest", "bound"), [(1, 1), (2, 2), (3, 5), (10, 10), (11, 20), (4999, 5000), (5001, 10000)],
)  # fmt: skip
def test_the_declared_bound_is_a_round_number_that_holds(largest: int, bound: int) -> None:
    assert declared_bound(largest) == bound


def test_a_declared_bound_below_a_client_is_refused(file: Path) -> None:
    data = from_file(file)
    assert split(data, replace(SETTINGS, n_max=300), 0).n_max == 300
    with pytest.raises(Refused, match="--n-max: 3 is below the"):
        split(data, replace(SETTINGS, n_max=3), 0)


def columns(**changed: Any) -> dict[str, Any]:
    data = worlds.clusters(60)
    found = {"x": data.x, "y": data.y} | changed
    return {name: column for name, column in found.items() if column is not None}


def bad_rows(value: float) -> np.ndarray:
    x = worlds.clusters(60).x.copy()
    x[[7, 9], 3] = value
    return x


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (columns(x=None), "x: the file has no such column; store"),
        (columns(y=None), "y: the file has no such column; store"),
        (columns(x=bad_rows(np.nan)), "x: 2 rows are NaN, infinite or zero, the first is row 7"),
        (columns(x=bad_rows(np.inf)), "x: 2 rows are NaN"),
        (columns(x=np.zeros((60, 12))), "x: 60 rows are NaN, infinite or zero"),
        (columns(x=np.ones(60)), r"x: expected numbers \[n, d\]"),
        (columns(x=np.full((60, 2), "a")), r"x: expected numbers \[n, d\]"),
        (columns(y=np.zeros(60)), r"y: one class only \(0.0\)"),
        (columns(y=np.zeros(59)), r"y: expected \[60\] as x has, found \[59\]"),
        (columns(y=np.full(60, np.nan)), "y: holds NaN"),
        (columns(domain=np.zeros(3)), "domain: expected"),
        (columns(unit=np.zeros((60, 1))), "unit: expected"),
        (columns(unit=np.zeros(60)), "x: fewer than 20 records or units"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_mend(
    tmp_path: Path, stored: dict[str, Any], problem: str
) -> None:
    np.savez(tmp_path / "bad.npz", **stored)
    with pytest.raises(Refused, match=problem) as caught:
        from_file(tmp_path / "bad.npz")
    assert caught.value.mend
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 half"])
def test_no_npz_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refused, match=r"^--data: "):
        from_file(path)


def test_an_array_and_objects_are_no_records(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(Refused, match="--data"):
        from_file(tmp_path / "one.npy")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], dtype=object))
    with pytest.raises(Refused, match="--data"):
        from_file(tmp_path / "objects.npz")


def test_a_refusal_crosses_processes() -> None:
    refused = Refused("x", "bad", "mend it")
    assert str(pickle.loads(pickle.dumps(refused))) == str(refused) == "x: bad; mend it"  # noqa: S301
