"""A report round with real sites over HTTP, the page that shows it, and the site's own report."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.report.local import STAMP
from core.report.report import Report
from tests.worker.real import Federation, commands, federation, issue
from worker.client import CoordinatorClient
from worker.config import SiteConfig

PRIVACY = {"rounds": 0, "epsilon": 40.0, "report_precision": 0.5, "report_holdout": 0.5}


@pytest.fixture
def fed(database_url: str, tmp_path: Path) -> Iterator[Federation]:
    with federation(database_url, tmp_path) as made:
        yield made


def write_many(path: Path, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, 300)
    x = np.eye(3, 6)[y] + 0.2 * draw.normal(size=(300, 6))
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


def trained(fed: Federation, **privacy: Any) -> tuple[str, dict[str, SiteConfig]]:
    """A finished run of two sites of 300 records each."""
    sites = {}
    for place, name in enumerate(("site-a", "site-b")):
        population = f"{name}/all"
        write_many(fed.folder / f"{population.replace('/', '-')}.npz", place)
        fed.enrol(name, population, site=name)
        sites[name] = fed.config(f"state-{name}", population, name)
    run = fed.start("first", *sites, privacy=privacy)
    fed.finish(sites, int(fed.operator.run(run)["rounds_planned"]))
    until = time.monotonic() + 20
    while fed.operator.run(run)["state"] != "completed":
        assert time.monotonic() < until, "the run was not completed in time"
        time.sleep(0.05)
    return run, sites


def test_what_sites_measure_is_in_the_report(fed: Federation) -> None:
    run, _ = trained(fed, **PRIVACY)
    with CoordinatorClient(fed.url, issue(fed.settings, "scientist")) as scientist:
        report = Report.model_validate(scientist.report(run))
        page = scientist.report_page(run)
    found = report.measured
    assert found is not None
    assert [site.client for site in found.sites] == ["site-a", "site-b"]
    assert report.rounds == ("sketch", "report")
    assert found.missing == ()
    # Well apart clusters and little noise: the figures are near what is true.
    accuracy, auc = found.pooled.accuracy, found.pooled.attack_auc
    assert accuracy is not None
    assert abs(accuracy.value - 1.0) < 4 * accuracy.se + 0.05
    assert auc is not None
    assert abs(auc.value - 0.5) < 4 * auc.se + 0.05
    held_out = found.pooled.held_out
    assert held_out is not None
    assert 200 < held_out.value < 400
    assert found.pooled.epsilon_lower <= report.privacy.clients[0].epsilon
    measured = [part for part in report.parts if part.source == "released with noise"]
    assert len(measured) == 4
    assert all(part.price for part in measured)
    assert "Not measured" not in page
    assert "the report round" in page
    assert page.count("<svg") >= 14


def test_a_site_sees_its_own_report_and_sends_nothing(
    fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sites = trained(fed, **PRIVACY)
    agent = commands(fed, monkeypatch)
    out = fed.folder / "local.html"
    sent = fed.sql("SELECT count(*) FROM audit_events")
    done = agent(
        sites["site-a"], fed.tokens["site-a"], "report", "--run", "first", "--out", str(out)
    )
    assert done.exit_code == 0, done.output
    assert STAMP in done.stdout
    assert "on held-out records" in done.stdout
    assert fed.sql("SELECT count(*) FROM audit_events") == sent
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    page = out.read_text()
    assert page.count(STAMP) >= 2
    assert "Membership attack" in page
    assert "Not measured" not in page
    assert not re.search(r"<(script|link|iframe|img)\b|(https?:)?//[a-z0-9]", page)
    by_id = agent(sites["site-a"], fed.tokens["site-a"], "report", "--run", run, "--out", str(out))
    assert by_id.exit_code == 0
    assert out.read_text() == page


def test_without_records_held_out_it_says_what_it_cannot(
    fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sites = trained(fed, rounds=0)
    agent = commands(fed, monkeypatch)
    token, out = fed.tokens["site-a"], fed.folder / "local.html"
    arguments = ["report", "--run", "first", "--out", str(out)]
    done = agent(sites["site-a"], token, *arguments)
    assert done.exit_code == 0, done.output
    assert "on records that the model was trained on" in done.stdout
    assert "An attack needs records that training has not seen" in out.read_text()
    unused = write_many(fed.folder / "unused.npz", seed=77)
    with_others = agent(sites["site-a"], token, *arguments, "--holdout", str(unused))
    assert with_others.exit_code == 0, with_others.output
    assert "on held-out records" in with_others.stdout
    assert "An attack needs records" not in out.read_text()


def test_what_cannot_be_done_is_said_in_one_line(
    fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sites = trained(fed, rounds=0)
    agent = commands(fed, monkeypatch)
    token, out = fed.tokens["site-a"], fed.folder / "local.html"
    for arguments, said in (
        (("--run", "other", "--out", str(out)), "there is no run 'other'"),
        (("--run", "first", "--out", str(fed.folder / "no" / "x.html")), "cannot write to"),
        (("--run", "first", "--out", str(out), "--client", "site-z"), "site-z"),
        (("--run", "first", "--out", str(out), "--holdout", "none.npz"), "none.npz"),
    ):
        done = agent(sites["site-a"], token, "report", *arguments)
        assert done.exit_code == 1, done.output
        assert said in done.stderr
        assert done.stderr.count("fedhypevae:") == 1
    assert not out.exists()
    assert agent(sites["site-a"], token, "report").exit_code == 2
