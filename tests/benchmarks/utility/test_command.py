"""The whole benchmark on tiny data: tables, figures, last line, resuming, workers, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.utility import command, measures, run_cost, store, tables
from benchmarks.utility.command import main
from benchmarks.utility.plan import Job, key
from benchmarks.utility.records import from_file
from benchmarks.utility.splits import Settings, split
from benchmarks.utility.store import Store, configuration
from core.evaluation.baselines.real import real_data
from core.federation.plan import PrivacyPlan
from tests.core import worlds

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["--clients", "3", "--seeds", "2", "--rows", "300"]
METHODS = ["real", "class-means", "shared-gaussian", "dp-sgd-linear", "ours", "sketch"]
OUR_ROWS = {
    "ours-neutral", "ours-codes", "ours-unguided", "ours-classifier",
    "sketch-neutral", "sketch-codes",
}  # fmt: skip


def arguments(file: Path, folder: Path, *more: str) -> list[str]:
    return ["--data", str(file), *SMALL, "--results", str(folder), *more]


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    (path,) = [p for p in folder.glob("utility-tiny-*.json") if p.stem.count("-") == 3]
    cells: dict[str, dict[str, Any]] = json.loads(path.read_text())["cells"]
    return cells


def test_tables_figures_and_one_line_of_json_and_resuming(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    asked = arguments(
        file, folder, "--epsilons", "1", "8", "--methods", *METHODS, "--jobs", "1"
    )  # fmt: skip
    assert main(asked) == 0
    first = capsys.readouterr().out
    line = json.loads(first.strip().splitlines()[-1])
    assert line == json.loads((folder / "utility-tiny-local.json").read_text())
    assert line["bench"] == "utility-tiny-local"
    rows = {"real", "class-means", "shared-gaussian", "dp-sgd-linear"} | OUR_ROWS
    assert {name.partition("@")[0].partition("/")[0] for name in line["figures"]} == rows | {
        "run-seconds", "run-peak-mib",
    }  # fmt: skip
    assert line["figures"]["class-means@8"] > 0.7
    assert 0.0 <= line["figures"]["ours-codes/membership_auc@8"] <= 1.0
    assert "dp-sgd-linear/mmd@8" not in line["figures"]
    assert "ours-classifier/mmd@8" not in line["figures"]
    assert set(line["targets"]) == {
        *(f"ours-minus-sketch@{e}" for e in (1, 8)),
        *(f"ours-minus-dp-sgd-linear@{e}" for e in (1, 8)),
        *(f"sketch-minus-best-baseline@{e}" for e in (1, 8)),
        "ours-minus-class-means@8",
        "run-seconds", "run-peak-mib",
    }  # fmt: skip
    for expected in ("NOT PRIVATE", "minus ours-neutral", "a choice not charged", "attack AUC"):
        assert expected in first
    assert max(len(text) for text in first.splitlines()[:-1]) <= 80

    for name in ("accuracy", "fidelity", "projections"):
        png = (folder / f"utility-tiny-local-{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert 5_000 < len(png) < 200_000

    cells = stored(folder)
    # real: a cell a seed; six rows of ours and two baselines at two epsilons; three rates; the run.
    assert len(cells) == 2 + 2 * 2 * (6 + 2) + 2 * 2 * 3 + 1
    assert "epsilon_spent" not in cells[key("real", None, 0)]
    assert 0.99 < cells["class-means|1|1"]["epsilon_spent"] <= 1.0
    assert 0.99 < cells["ours-neutral|1|1"]["epsilon_spent"] <= 1.0
    assert cells["ours-neutral|1|0"]["rounds"] == 20
    assert cells["sketch-neutral|1|0"]["rounds"] == 0
    assert cells["ours-neutral|8|0"]["mmd"] != cells["ours-unguided|8|0"]["mmd"]
    matrix = cells["ours-codes|1|0"]["matrix"]
    assert matrix["sources"] == ["client 0", "client 1", "client 2", "neutral"]
    assert np.shape(matrix["mmd"]) == np.shape(matrix["tstr"]) == (4, 3)
    assert cells["sketch-codes|8|0"]["n_max"] in (50, 100, 200)

    def never(*_: object) -> dict[str, Any]:
        raise AssertionError("measured again")

    monkeypatch.setattr(command, "measure", never)
    assert main(asked) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError, match="again"):
        main([*asked, "--delta", "1e-5"])  # another configuration, another file


def test_workers_find_what_one_process_finds(file: Path, tmp_path: Path) -> None:
    found = []
    for number in ("1", "2"):
        folder = tmp_path / number
        asked = ["--epsilons", "1", "--seeds", "1", "--methods", "real", "ours"]
        assert main(arguments(file, folder, *asked, "--jobs", number)) == 0
        cells = stored(folder)
        for cell in cells.values():
            cell.pop("seconds", None)
        found.append(cells)
    assert len(found[0]) == 1 + 4 + 1
    assert found[0] == found[1]


def test_aggregated_noise_leaves_the_neutral_code(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--noise", "aggregated", "--methods", "class-means", "ours", "sketch"]
    asked += ["--epsilons", "8", "--seeds", "1"]
    assert main(arguments(file, tmp_path / "r", *asked, "--collude", "3")) == 2
    refused = capsys.readouterr().err
    assert "--collude" in refused
    assert "there are 3 sites" in refused
    asked += ["--collude", "1"]
    assert main(arguments(file, tmp_path / "r", *asked, "--jobs", "1")) == 0
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for method in ("ours", "sketch"):
        assert f"{method}-neutral@8" in line["figures"]
        assert f"{method}-codes@8" not in line["figures"]
    assert not list((tmp_path / "r").glob("*fidelity*"))


def test_noise_once_in_the_sum_is_a_row_beside_local_noise(file: Path, tmp_path: Path) -> None:
    asked = ["--methods", "ours-aggregated", "sketch-aggregated", "--epsilons", "2"]
    assert main(arguments(file, tmp_path, *asked, "--seeds", "1", "--jobs", "1")) == 0
    assert set(stored(tmp_path)) == {"ours-aggregated|2|0", "sketch-aggregated|2|0"}


def test_a_sites_own_code_is_compared_on_its_own_records_where_sites_have_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = worlds.clusters(300)
    path = tmp_path / "tiny.npz"
    np.savez(path, x=data.x, y=data.y, domain=np.array(["east", "west"])[np.arange(300) % 2])
    asked = ["--methods", "ours", "--epsilons", "4", "8", "--seeds", "1", "--jobs", "1"]
    assert main(arguments(path, tmp_path, *asked)) == 0
    shown = capsys.readouterr().out
    line = json.loads(shown.strip().splitlines()[-1])
    assert {"sites-whose-own-code-wins@4", "codes-minus-neutral@4"} <= set(line["targets"])
    assert line["targets"]["sites-whose-own-code-wins@4"]["target"] == 2
    assert 0.5 < line["figures"]["ours-domain/east/own@4"] <= 1.0
    assert "west, ours" in shown
    cells = stored(tmp_path)
    assert cells["ours-codes|4|0"]["domains"]["sites"] == ["east", "west"]
    assert "domains" not in cells["ours-codes|8|0"]


def test_a_method_without_a_guarantee_spends_no_number(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unbounded(sites: Any, space: Any, *_: Any) -> Any:
        return real_data(sites, space)

    monkeypatch.setattr(measures, "METHODS", {"paper": unbounded})
    data = from_file(file)
    settings = Settings(clients=3, rows=300)
    job = Job("paper", 1.0, 0)
    cell = measures.measure(data, split(data, settings, 0), settings, job)["paper|1|0"]
    assert cell["epsilon_spent"] == "none"
    assert tables.label("paper").replace("-\n", "-") == "paper (no record-level guarantee)"


def test_cells_of_other_defaults_are_not_taken_up(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings = from_file(file), Settings(clients=3)
    before = configuration(data, settings)
    assert before == configuration(data, settings)
    other = PrivacyPlan(epsilon=1.0, delta=1e-4, n_max=1, rounds=21)
    monkeypatch.setattr(store, "PrivacyPlan", lambda **_: other)
    assert configuration(data, settings) != before


def test_a_broken_write_leaves_the_finished_cells(tmp_path: Path) -> None:
    about = {"data": "x", "noise": "local"}
    store = Store(tmp_path, about)
    store.add({"a|1|0": {"accuracy": 0.5}})
    store.path.with_suffix(".part").write_text("{half")
    assert Store(tmp_path, about).cells == {"a|1|0": {"accuracy": 0.5}}


def test_a_job_that_fails_leaves_the_cells_before_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = command.measure

    def fails(data: Any, parts: Any, settings: Any, job: Any) -> dict[str, Any]:
        if job.seed == 1:
            raise KeyboardInterrupt
        return real(data, parts, settings, job)

    monkeypatch.setattr(command, "measure", fails)
    asked = arguments(file, tmp_path, "--methods", "real", "--jobs", "1")
    assert main(asked) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert set(stored(tmp_path)) == {"real|-|0"}


def test_ctrl_c_ends_the_workers_too(file: Path, tmp_path: Path) -> None:
    asked = arguments(file, tmp_path, "--seeds", "2000", "--methods", "class-means", "--jobs", "2")
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.utility", *asked],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("*.json")):
            assert time.monotonic() < until
            assert started.poll() is None
            time.sleep(0.1)
        children = psutil.Process(started.pid).children(recursive=True)
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to all of them
        output, _ = started.communicate(timeout=60)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
    assert started.returncode == 130, output.decode()
    assert b"goes on from there" in output
    assert b"Traceback" not in output
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)
    assert stored(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--seeds", "x"], "--seeds"),
        (["--jobs", "0"], "--jobs"),
        (["--rows", "50001"], "--rows"),
        (["--epsilons", "nan"], "--epsilons"),
        (["--epsilons", "1", "-1"], "--epsilons"),
        (["--delta", "1"], "--delta"),
        (["--alpha", "0"], "--alpha"),
        (["--train", "1"], "--train"),
        (["--methods", "magic"], "--methods"),
        (["--noise", "none"], "--noise"),
        (["--clients", "0"], "--clients"),
        (["--reference", "dp-cvae", "--methods", "real"], "--reference"),
        (["--methods", "ours-aggregated", "--noise", "aggregated"], "--methods"),
        (["--n-max", "3", "--methods", "ours", "--jobs", "1"], "--n-max"),
        (["--n-max", "3", "--methods", "ours", "--jobs", "2"], "--n-max"),
        (["--data", "/nowhere.npz"], "--data"),
    ],
)
def test_bad_arguments_are_named_in_one_line(
    file: Path, tmp_path: Path, wrong: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = main([*arguments(file, tmp_path / "r"), *wrong])
    except SystemExit as exit_:  # argparse
        status = exit_.code
    assert status == 2
    last = [line for line in capsys.readouterr().err.splitlines() if "%" not in line and line][-1]
    assert last.startswith("python -m benchmarks.utility: ")
    assert named in last


def test_errors_reach_the_shell_as_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.utility", "--data", "/nowhere.npz"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.timeout(600)  # a whole run of ten clients; beside other tests it takes minutes
def test_the_cost_of_one_run_is_measured_in_a_process_of_its_own() -> None:
    found = run_cost.measured()
    assert 0.5 < found["seconds"] < 60
    assert 50 < found["peak_mib"] < 1_500
