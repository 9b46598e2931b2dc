"""Fixtures of the worker's tests: a site's folder, its records and its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.support import make_config, write_records
from worker.agent.site import Site
from worker.config import ClientConfig


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write_records(tmp_path / "site-a.npz")


@pytest.fixture
def config(records: Path) -> ClientConfig:
    return make_config(records)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def site(state_dir: Path) -> Iterator[Site]:
    with Site.open(state_dir) as opened:
        yield opened
