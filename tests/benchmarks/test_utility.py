"""The utility benchmark: fair splits, resuming, its tables and its last line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import utility
from benchmarks.utility import Records, Settings, Store, from_file, key, main, split
from tests.core import worlds

SETTINGS = Settings(clients=4, alpha=0.5, train=0.6, delta=1e-4, noise="local")
SMALL = ["--clients", "3", "--epsilons", "1", "8", "--seeds", "2"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    data = worlds.clusters(300)
    path = tmp_path / "tiny.npz"
    np.savez(path, x=data.x, y=data.y)
    return path


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utility, "ROWS", 300)


def rows_of(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


def test_every_record_is_dealt_once_to_a_client_or_to_the_test(file: Path) -> None:
    data = from_file(file)
    parts = split(data, SETTINGS, 0)
    pieces = [rows_of(site.x) for site in parts.sites] + [rows_of(parts.test_x)]
    assert sum(len(piece) for piece in pieces) == 300
    assert set.union(*pieces) == rows_of(data.x)
    assert len(parts.test_y) == 120
    assert len(parts.sites) == 4


def test_a_seed_names_a_split(file: Path) -> None:
    data = from_file(file)
    one, again, other = (split(data, SETTINGS, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.sites[2].x, again.sites[2].x)
    assert rows_of(one.test_x) != rows_of(other.test_x)


def test_units_stay_whole_and_domains_are_clients(tmp_path: Path) -> None:
    data = worlds.clusters(240)
    units = np.arange(240) // 6
    path = tmp_path / "patients.npz"
    np.savez(path, x=data.x, y=data.y, unit=units, domain=units % 3)
    found = from_file(path)
    assert found.unit == "patient"
    parts = split(found, SETTINGS, 0)
    assert len(parts.sites) == 3
    owners = [set(site.unit) for site in parts.sites]
    assert len(set.union(*owners)) == sum(len(owner) for owner in owners)
    trained = {int(u) for owner in owners for u in owner}
    assert len(trained) == 24
    assert sum(len(site) for site in parts.sites) == 24 * 6
    assert len(parts.test_y) == 16 * 6


def test_held_out_rows_of_the_data_set_are_respected() -> None:
    data = worlds.clusters(30)
    mask = np.arange(30) % 3 == 0
    own = Records(
        "own", worlds.space(), data.x, data.y, np.arange(30), "record",
        np.arange(30) // 15, lambda seed: np.roll(mask, seed),
    )  # fmt: skip
    assert rows_of(split(own, SETTINGS, 1).test_x) == rows_of(data.x[np.roll(mask, 1)])


def test_main_prints_tables_and_one_line_of_json_and_resumes(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["real", "class-means", "shared-gaussian", "sketch-codes"]
    arguments = [
        "--data", str(file), *SMALL, "--methods", *methods, "--results", str(tmp_path / "r")
    ]  # fmt: skip
    main(arguments)
    first = capsys.readouterr().out
    line = json.loads(first.strip().splitlines()[-1])
    assert line["bench"].startswith("utility-")
    assert {name.partition("@")[0] for name in line["figures"]} == set(methods)
    assert line["figures"]["class-means@8"] > 0.7
    assert set(line["targets"]) == {f"ours-minus-best-baseline@{e}" for e in (1, 8)}
    assert "NOT PRIVATE" in first
    assert "minus class-means" in first
    (stored,) = (tmp_path / "r").glob("*.json")
    cells = json.loads(stored.read_text())["cells"]
    assert len(cells) == 2 + 3 * 2 * 2  # real data: once a seed
    assert "epsilon_spent" not in cells[key("real", 1.0, 0)]
    assert 0.99 < cells["class-means|1|1"]["epsilon_spent"] <= 1.0

    def never(*_: object) -> dict[str, float]:
        raise AssertionError("measured again")

    monkeypatch.setattr(utility, "measure", never)
    main(arguments)
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError, match="again"):
        main([*arguments, "--delta", "1e-5"])  # another configuration, another file


def test_aggregated_noise_leaves_out_what_has_none(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([
        "--data", str(file), *SMALL, "--noise", "aggregated", "--results", str(tmp_path / "r"),
        "--methods", "class-means", "sketch-neutral",
    ])  # fmt: skip
    captured = capsys.readouterr()
    assert "left out" in captured.err
    assert "sketch" not in captured.out


def test_a_broken_write_leaves_the_finished_cells(tmp_path: Path) -> None:
    store = Store(tmp_path, "x", {"noise": "local"})
    store.add("a|1|0", {"accuracy": 0.5})
    store.path.with_suffix(".part").write_text("{half")
    assert Store(tmp_path, "x", {"noise": "local"}).cells == {"a|1|0": {"accuracy": 0.5}}


def test_no_seed_is_refused(file: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--data", str(file), "--seeds", "0"])
