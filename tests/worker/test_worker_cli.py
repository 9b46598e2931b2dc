"""The commands: clear errors, exit codes, and reports for a person and a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from click.testing import Result
from typer.testing import CliRunner

from core.federation.plan import digest_of
from tests.worker.support import DIM, Script, make_config, make_order, space, write_records
from worker.agent import check
from worker.agent.records import AttemptKey
from worker.agent.site import Site
from worker.cli import agent_app, worker_app

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("TOKEN", "SITE_CONFIG", "BROKER_URL", "OBJECT_STORE_URL", "COORDINATOR_URL"):
        monkeypatch.delenv(f"FHV_{name}", raising=False)
    yield
    structlog.reset_defaults()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "site-a.npz")
    (tmp_path / "space.json").write_text(space().model_dump_json())
    return tmp_path


@pytest.fixture
def agent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: str, extra: str = "") -> Result:
        (folder / "site.toml").write_text(
            '[site]\nstate_dir = "state"\n[[client]]\nname = "site-a"\ndata = "site-a.npz"\n'
            'unit = "record"\npopulation = "a/all"\nmax_epsilon = 8.0\ndelta = 1e-5\n'
            f"min_noise_multiplier = 0.3\n{extra}"
        )
        monkeypatch.setenv("FHV_SITE_CONFIG", str(folder / "site.toml"))
        return CliRunner().invoke(agent_app, list(arguments))

    return run


@pytest.fixture
def checked(agent: Run, folder: Path) -> Run:
    return lambda **more: agent("check", "--space", str(folder / "space.json"), **more)


def test_check_of_a_ready_site(checked: Run) -> None:
    result = checked()
    assert result.exit_code == 0, result.output
    assert "60 records of 60 units" in result.stdout
    assert "spent epsilon 0 of 8" in result.stdout


def test_check_names_the_rows_that_would_contribute_nothing(checked: Run, folder: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, DIM)).astype(np.float32)
    bad = [3, 17, 21, 22, 23, 24, 25, 26, 27, 28, 29, 40]
    x[bad] = np.nan
    x[41] = 0.0
    np.savez(folder / "site-a.npz", x=x, y=np.zeros(50, np.int64))
    result = checked()
    assert result.exit_code == 1
    assert "rows 3, 17, 21, 22, 23, 24, 25, 26, 27, 28, 29, 40, 41 " in result.stdout


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones((2, 5), np.float32), "y": np.zeros(2, np.int64)}, "5 wide"),
        ({"x": np.ones((2, DIM), np.float32), "y": np.array([0, 9])}, "outside the vocabulary"),
        ({"x": np.zeros((0, DIM), np.float32), "y": np.zeros(0, np.int64)}, "no records"),
        ({"x": np.ones((2, DIM), np.float32)}, "no 'y'"),
    ],
)
def test_check_of_unusable_records(
    checked: Run, folder: Path, arrays: dict[str, Any], says: str
) -> None:
    np.savez(folder / "site-a.npz", **arrays)
    result = checked()
    assert result.exit_code == 1
    assert "PROBLEM" in result.stdout
    assert says in result.stdout


def test_check_without_a_data_file(checked: Run, folder: Path) -> None:
    (folder / "site-a.npz").unlink()
    result = checked()
    assert result.exit_code == 1
    assert "no data file" in result.stdout


def test_check_of_another_space(checked: Run) -> None:
    assert checked(extra=f'space_digest = "{digest_of(space())}"').exit_code == 0
    result = checked(extra=f'space_digest = "sha256:{"a" * 64}"')
    assert result.exit_code == 1
    assert "pinned" in result.stdout


def test_check_prints_every_problem_at_once(checked: Run, folder: Path) -> None:
    Site.open(folder / "state").close()
    (folder / "state" / "ledger.sqlite3").unlink()
    (folder / "site-a.npz").unlink()
    result = checked(extra=f'space_digest = "sha256:{"a" * 64}"')
    assert result.exit_code == 1
    assert result.stdout.count("PROBLEM") == 3


def test_check_asks_the_coordinator_for_the_space(
    agent: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script()
    monkeypatch.setattr(check, "CoordinatorClient", lambda *_: script.client())
    monkeypatch.setenv("FHV_TOKEN", "fhv_client_x")
    result = agent("check")
    assert result.exit_code == 0, result.output
    assert script.calls == ["GET /v1/clients/me", "GET /v1/spaces/clusters"]


def test_check_without_token_or_space_says_both_ways(agent: Run) -> None:
    result = agent("check")
    assert result.exit_code == 1
    assert "FHV_TOKEN" in result.stdout
    assert "--space FILE" in result.stdout


def test_an_unreadable_space(agent: Run, folder: Path) -> None:
    for text in ("{", "[1]", '{"name": "x"}'):
        (folder / "space.json").write_text(text)
        result = agent("check", "--space", str(folder / "space.json"))
        assert result.exit_code == 1
        assert "space" in result.stderr
        assert "Traceback" not in result.output


def test_the_ledger_as_json_and_as_a_table(agent: Run, folder: Path) -> None:
    config = make_config(folder / "site-a.npz")
    with Site.open(folder / "state") as site:
        for attempt in (1, 2):
            site.ledger.reserve(make_order(attempt=attempt), config, lambda _: None)
        site.ledger.commit(AttemptKey.of(make_order(attempt=1)), b"body")
        spent = site.ledger.epsilon("a/all", 1e-5)
    (account,) = json.loads(agent("ledger", "--json").stdout)["accounts"]
    assert account["epsilon_total"] == spent
    assert account["attempts"] == {"commit": 1, "lost": 0, "open": 1}
    assert "lease" not in json.dumps(account)
    table = agent("ledger", "--client", "site-a").stdout
    assert f"epsilon {spent:.4f} of 8" in table
    assert table.count("reserve") == 2


def test_the_ledger_before_anything_was_spent(agent: Run) -> None:
    result = agent("ledger")
    assert result.exit_code == 1
    assert "nothing was spent" in result.stderr


@pytest.mark.parametrize("command", ["check", "ledger"])
def test_an_unknown_client(agent: Run, folder: Path, command: str) -> None:
    Site.open(folder / "state").close()
    result = agent(command, "--client", "site-z")
    assert result.exit_code == 1
    assert "it has: site-a" in result.stderr


def test_run_without_settings_says_which() -> None:
    result = CliRunner().invoke(agent_app, ["run"])
    assert result.exit_code == 1
    assert "FHV_SITE_CONFIG" in result.stderr
    assert "Traceback" not in result.output


def test_agent_run_without_a_token(agent: Run) -> None:
    result = agent("run")
    assert result.exit_code == 1
    assert "FHV_TOKEN" in result.stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "FHV_TOKEN"),
        ({"FHV_TOKEN": "t"}, "FHV_BROKER_URL"),
        ({"FHV_TOKEN": "t", "FHV_BROKER_URL": "redis://x"}, "FHV_SITE_CONFIG"),
    ],
)
def test_worker_run_without_settings_says_which(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(worker_app, ["run", "--queue", "train"])
    assert result.exit_code == 1
    assert says in result.stderr


def test_the_coordinator_queue_needs_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FHV_TOKEN", "t")
    monkeypatch.setenv("FHV_BROKER_URL", "redis://x")
    result = CliRunner().invoke(worker_app, ["run", "--queue", "coordinator"])
    assert result.exit_code == 1
    assert "FHV_OBJECT_STORE_URL" in result.stderr


def test_an_unknown_queue_is_wrong_usage() -> None:
    result = CliRunner().invoke(worker_app, ["run", "--queue", "gpu"])
    assert result.exit_code == 2
    assert "train" in result.output
