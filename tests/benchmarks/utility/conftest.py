"""Tiny data for the utility benchmark, and no measuring of time and memory unless wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.utility import command
from tests.core import worlds


@pytest.fixture
def file(tmp_path: Path) -> Path:
    data = worlds.clusters(300)
    path = tmp_path / "tiny.npz"
    np.savez(path, x=data.x, y=data.y)
    return path


@pytest.fixture(autouse=True)
def run_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "measured", lambda: {"seconds": 2.5, "peak_mib": 2000.0})
