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

from benchmarks.utility import run_cost, runner
from benchmarks.utility.command import main
from benchmarks.utility.plan import key
from benchmarks.utility.store import Store

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["--clients", "3", "--seeds", "2", "--rows", "300"]
METHODS = ["real", "class-means", "shared-gaussian", "dp-sgd-linear", "ours"]


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
    rows = {"real", "class-means", "shared-gaussian", "dp-sgd-linear", "sketch-neutral", "sketch-codes"}  # fmt: skip  # noqa: E501
    assert {name.partition("@")[0].partition("/")[0] for name in line["figures"]} == rows | {
        "run-seconds", "run-peak-mib",
    }  # fmt: skip
    assert line["figures"]["class-means@8"] > 0.7
    assert 0.0 <= line["figures"]["sketch-codes/membership_auc@8"] <= 1.0
    assert "dp-sgd-linear/mmd@8" not in line["figures"]
    assert set(line["targets"]) == {
        *(f"ours-minus-best-baseline@{e}" for e in (1, 8)),
        *(f"neutral-minus-codes@{e}" for e in (1, 8)),
        "run-seconds", "run-peak-mib",
    }  # fmt: skip
    for expected in ("NOT PRIVATE", "minus sketch-codes", "a choice not charged", "attack AUC"):
        assert expected in first
    assert max(len(text) for text in first.splitlines()[:-1]) <= 80

    for name in ("accuracy", "fidelity", "projections"):
        png = (folder / f"utility-tiny-local-{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert 5_000 < len(png) < 200_000

    cells = stored(folder)
    # real: a cell a seed; two rows of ours and two baselines at two epsilons; three rates; the run.
    assert len(cells) == 2 + 2 * 2 * (2 + 2) + 2 * 2 * 3 + 1
    assert "epsilon_spent" not in cells[key("real", None, 0)]
    assert 0.99 < cells["class-means|1|1"]["epsilon_spent"] <= 1.0
    matrix = cells["sketch-codes|1|0"]["matrix"]
    assert matrix["sources"] == ["client 0", "client 1", "client 2", "neutral"]
    assert np.shape(matrix["mmd"]) == np.shape(matrix["tstr"]) == (4, 3)
    assert cells["sketch-codes|8|0"]["n_max"] in (50, 100, 200)

    def never(*_: object) -> dict[str, Any]:
        raise AssertionError("measured again")

    monkeypatch.setattr(runner, "measure", never)
    assert main(asked) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError, match="again"):
        main([*asked, "--delta", "1e-5"])  # another configuration, another file


def test_workers_find_what_one_process_finds(file: Path, tmp_path: Path) -> None:
    found = []
    for number in ("1", "2"):
        folder = tmp_path / number
        asked = ["--epsilons", "1", "--seeds", "1", "--methods", "real", "dp-merf", "ours"]
        assert main(arguments(file, folder, *asked, "--jobs", number)) == 0
        cells = stored(folder)
        for cell in cells.values():
            cell.pop("seconds", None)
        found.append(cells)
    assert len(found[0]) == 1 + 1 + 2 + 1
    assert found[0] == found[1]


def test_aggregated_noise_leaves_the_neutral_code(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--noise", "aggregated", "--methods", "class-means", "ours", "--epsilons", "8"]
    assert main(arguments(file, tmp_path / "r", *asked, "--jobs", "1")) == 0
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert "sketch-neutral@8" in line["figures"]
    assert "sketch-codes@8" not in line["figures"]
    assert not list((tmp_path / "r").glob("*fidelity*"))


def test_noise_once_in_the_sum_is_a_row_beside_local_noise(file: Path, tmp_path: Path) -> None:
    asked = ["--methods", "ours-aggregated", "--epsilons", "2", "--jobs", "1"]
    assert main(arguments(file, tmp_path, *asked)) == 0
    assert set(stored(tmp_path)) == {"sketch-aggregated|2|0", "sketch-aggregated|2|1"}


def test_a_broken_write_leaves_the_finished_cells(tmp_path: Path) -> None:
    about = {"data": "x", "noise": "local"}
    store = Store(tmp_path, about)
    store.add({"a|1|0": {"accuracy": 0.5}})
    store.path.with_suffix(".part").write_text("{half")
    assert Store(tmp_path, about).cells == {"a|1|0": {"accuracy": 0.5}}


def test_a_job_that_fails_leaves_the_cells_before_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = runner.measure

    def fails(data: Any, parts: Any, settings: Any, job: Any) -> dict[str, Any]:
        if job.seed == 1:
            raise KeyboardInterrupt
        return real(data, parts, settings, job)

    monkeypatch.setattr(runner, "measure", fails)
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
    until = time.monotonic() + 60
    while not list(tmp_path.glob("*.json")):
        assert time.monotonic() < until
        assert started.poll() is None
        time.sleep(0.1)
    children = psutil.Process(started.pid).children(recursive=True)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to all of them
    output, _ = started.communicate(timeout=60)
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


def test_the_cost_of_one_run_is_measured_in_a_process_of_its_own() -> None:
    found = run_cost.measured()
    assert 0.5 < found["seconds"] < 60
    assert 50 < found["peak_mib"] < 1_500
