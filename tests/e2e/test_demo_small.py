"""The demo itself as a program, on small made-up clusters: real processes, real services."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from benchmarks.demo.federation import receipt_of
from benchmarks.demo.small import clusters

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5  # of plan_small.toml: two sketch steps and three training rounds
FILES = ("unguided", "neutral", "mixture", "site-a", "site-b", "site-c")

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


def _command(output: Path) -> list[str]:
    return [sys.executable, "-m", "core.cli", "demo", "--small", "--output", str(output)]


def _environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FHV_")}
    return {**kept, "COLUMNS": "160", "TMPDIR": str(folder)}


@pytest.fixture(scope="module")
def finished(
    shared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any], Path]:
    """One run of the demo: what it printed, its output folder, its report, its temporary folder."""
    temporary = Path(tempfile.mkdtemp(dir=shared_folder))
    output = tmp_path_factory.mktemp("out") / "demo-output"
    done = subprocess.run(
        _command(output),
        cwd=ROOT,
        env=_environment(temporary),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, output, json.loads((output / "report.json").read_text()), temporary


def test_the_run_completes_with_the_planned_rounds(
    finished: tuple[str, Path, dict[str, Any], Path],
) -> None:
    printed, _, report, temporary = finished
    assert report["rounds_published"] == ROUNDS
    assert "simulation: the real-data rows are not private" in printed
    for step in ("Starting Postgres", "Alembic", "Enrolling", "calibrates", "Stopping"):
        assert step in printed
    assert list(temporary.glob("fhv-*")) == []
    assert report["peak_memory_bytes"] > 100 * 2**20
    assert not re.search(r"fhv_[a-z]+_", printed), "a token was printed"


def test_ledgers_hold_exactly_what_was_executed(
    finished: tuple[str, Path, dict[str, Any], Path],
) -> None:
    clients = finished[2]["clients"]
    epsilon = finished[2]["plan"]["privacy"]["epsilon"]
    assert [each["name"] for each in clients] == ["site-a", "site-b", "site-c"]
    for each in clients:
        assert each["committed"] == each["site_committed"] == ROUNDS
        assert each["reserved"] == each["committed"] + each["lost"]
        assert each["lost"] == 0
        assert each["epsilon"] == pytest.approx(each["site_epsilon"], rel=1e-9)
        assert 0.9 * epsilon < each["epsilon"] <= epsilon
        assert len(each["up_bytes"]) == len(each["down_bytes"]) == ROUNDS
        assert min(each["up_bytes"]) > 1000
        assert min(each["down_bytes"][1:]) > 1000


def test_synthetic_tables_are_usable_and_say_what_they_are(
    finished: tuple[str, Path, dict[str, Any], Path],
) -> None:
    _, output, report, _ = finished
    space = clusters().space
    for name in FILES:
        path = output / f"{name}.parquet"
        table = pq.read_table(path)
        x = np.stack(table.column("embedding").to_numpy())
        assert x.shape == (400, space.dim)
        assert np.isfinite(x).all()
        assert set(table.column("label").to_pylist()) <= set(space.classes)
        receipt = receipt_of(path)["receipt"]
        assert receipt["model"]["run_id"] == report["run_id"]
        assert receipt["noise_mode"] == "csprng"
        assert len(receipt["per_client"]) == 3
        assert receipt["content"]["n"] == 400
    mixture = receipt_of(output / "mixture.parquet")["receipt"]["asked"]["mixture"]
    assert mixture == {"site-a": 0.7, "site-b": 0.3}
    accuracy = {row["trained_on"]: row["accuracy"] for row in report["accuracy"]}
    assert accuracy["real data (ceiling)"] > 0.9
    assert accuracy["synthetic: neutral code"] > 3 / len(space.classes) * 0.9
    assert len(accuracy) == 2 + len(FILES)


def test_ctrl_c_in_the_middle_stops_every_process(service_folder: Path) -> None:
    temporary = service_folder
    log = temporary / "printed"
    with log.open("wb") as printed:
        demo = subprocess.Popen(
            _command(temporary / "out"),
            cwd=ROOT,
            env=_environment(temporary),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while "Creating the run" not in log.read_text():
            assert demo.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        children = psutil.Process(demo.pid).children(recursive=True)
        (folder,) = temporary.glob("fhv-*")
        postmaster = psutil.Process(int((folder / "pg" / "postmaster.pid").read_text().split()[0]))
        assert len(children) >= 5
        assert all("fhv_" not in " ".join(child.cmdline()) for child in children)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 128 + signal.SIGINT, log.read_text()
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
    gone, alive = psutil.wait_procs([*children, postmaster], timeout=10)
    assert alive == []
    assert len(gone) == len(children) + 1
    assert not folder.exists()
    assert "every process has been stopped" in log.read_text()
