"""The notebook for data scientists runs as it stands, against a real coordinator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.real import Federation, federation, issue

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK: dict[str, Any] = json.loads((ROOT / "docs" / "synthesize.ipynb").read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def published(database_url: str, tmp_path: Path) -> Iterator[Federation]:
    with federation(database_url, tmp_path) as fed:
        sites = {}
        for name in ("site-a", "site-b", "site-c"):
            fed.enrol(name, f"{name}/all", site=name)
            sites[name] = fed.config(f"state-{name}", f"{name}/all", name)
        run = fed.start("wards", *sites)
        fed.complete(run, sites, rounds=2)
        yield fed


def test_every_cell_runs(published: Federation, tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in CODE))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(script)],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MPLBACKEND": "Agg",
            "FHV_COORDINATOR_URL": published.url,
            "FHV_TOKEN": issue(published.settings, "scientist"),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wards, round 1: 6 dimensions\nclasses: a, b, c\n" in done.stdout
    assert "signature: holds" in done.stdout
    assert "rows: holds (4,000 rows" in done.stdout
    assert "the mean of 50,000 rows" in done.stdout
    assert "wards-round-1.safetensors" in done.stdout


def test_it_is_kept_without_results() -> None:
    """Results would be of somebody's run, and of an older version."""
    assert (NOTEBOOK["nbformat"], len(CODE) > 6) == (4, True)
    for cell in CODE:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
