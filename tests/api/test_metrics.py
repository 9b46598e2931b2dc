"""Metrics follow what happens, are closed to strangers, and are the ones that others name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse
from pydantic import SecretStr

from api.config import Settings, SettingsError, load
from api.db.engine import Database
from api.metrics.books import Books
from tests.api.support import Coordinator, problem

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "the scraper's own secret"
_NAME = re.compile(r"\b(?:fhv|process)_[a-z_]+\b")
Sample = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture(autouse=True)
def fresh(coordinator: Coordinator) -> None:
    """Every scrape reads the database."""
    coordinator.app.state.books = Books(kept_s=0.0, spent_kept_s=0.0)


async def scrape(coordinator: Coordinator) -> dict[Sample, float]:
    answer = await coordinator.call("GET", "/metrics", "auditor")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(answer.text)
        for sample in family.samples
    }


def of(found: dict[Sample, float], name: str, **labels: str) -> float:
    return found.get((f"fhv_{name}", frozenset(labels.items())), 0.0)


async def test_a_run_moves_them(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    coordinator.pass_time(7.0)
    before = await scrape(coordinator)
    assert of(before, "rounds", state="open") == 1
    assert 7 <= of(before, "round_wait_seconds", state="open") < 60
    assert of(before, "round_overdue_seconds") == 0
    assert of(before, "queue", queue="work", state="leased") == 1
    assert of(before, "queue", queue="work", state="ready") == 1
    assert of(before, "client_epsilon_committed", client="site-a") == 0
    reserved = await coordinator.ledger("site-a")
    assert of(before, "client_epsilon_worst", client="site-a") == reserved["epsilon_total"] > 0
    assert of(before, "client_epsilon_budget", client="site-a") == 8.0
    assert of(before, "updates_accepted_total") == 0

    assert (await coordinator.send(order)).status_code == 201
    await coordinator.work("site-b", seed=2)
    await coordinator.sweep()
    summing = await scrape(coordinator)
    assert of(summing, "updates_accepted_total") == 2
    assert of(summing, "rounds", state="aggregating") == 1
    assert of(summing, "queue", queue="aggregate", state="ready") == 1
    spent = await coordinator.ledger("site-a")
    committed = of(summing, "client_epsilon_committed", client="site-a")
    assert committed == spent["epsilon_committed"] > 0
    assert of(summing, "outbox_unsent") >= 1
    assert 0 <= of(summing, "outbox_oldest_seconds") < 60

    await coordinator.aggregate()
    after = await scrape(coordinator)
    assert of(after, "rounds", state="published") == 1
    assert of(after, "aggregation_seconds_count", kind="aggregate") == 1
    assert 0 < of(after, "aggregation_seconds_sum", kind="aggregate") < 60
    route = "/v1/runs/{run_id}/rounds/{number}/updates/{update_id}"
    uploads = [
        value
        for (name, labels), value in after.items()
        if name == "fhv_requests_total" and {("status", "201"), ("method", "PUT")} <= labels
        and ("route", route) in labels
    ]  # fmt: skip
    assert uploads == [2]
    assert run["id"] not in str(after), "ids are no labels"


async def test_refused_updates_and_requests_are_counted_by_code(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    for _ in range(2):  # the same bytes again are refused again, and counted once
        refused = await coordinator.send(order, b"nothing", update_id=order["work_id"])
        assert refused.status_code == 422
    await coordinator.call("GET", "/wp-admin/x.php", None)
    problem(await coordinator.call("GET", "/v1/clients", None), 401, "unauthenticated")
    found = await scrape(coordinator)
    rejected = {
        dict(labels)["code"]: value
        for (name, labels), value in found.items()
        if name == "fhv_updates_rejected_total"
    }
    assert set(rejected.values()) == {0.0, 1.0}, "codes that nobody met are there, at zero"
    (code,) = (code for code, value in rejected.items() if value)
    rows = await coordinator.sql("SELECT code FROM rejections")
    assert [row[0] for row in rows] == [code]
    assert of(found, "problems_total", route="unmatched", code="not-found") == 1
    assert of(found, "problems_total", route="/v1/clients", code="unauthenticated") == 1
    assert "wp-admin" not in str(found)


async def test_rows_are_counted_by_format(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    run = await coordinator.run("site-a", privacy={"rounds": 0}, round={"quorum": 1})
    await coordinator.finish(run, "site-a")
    body: dict[str, Any] = {"run": "run-1", "seed": 1}
    for n, kind in ((10, "json"), (9_000, "arrow"), (5, "arrow")):
        asked = {**body, "n": n, "format": kind}
        answer = await coordinator.call("POST", "/synthesize", "scientist", json=asked)
        assert answer.status_code == 200
    refused = await coordinator.call("POST", "/synthesize", "scientist", json={**body, "n": 0})
    assert refused.status_code == 422
    found = await scrape(coordinator)
    assert of(found, "synthesis_rows_total", format="json", way="answer") == 10
    assert of(found, "synthesis_rows_total", format="arrow", way="answer") == 9_005
    assert of(found, "problems_total", route="/synthesize", code="invalid-request") == 1


async def test_a_stuck_round_and_a_lost_attempt_show(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    coordinator.pass_time(400.0)  # its deadline is after 100; nobody sweeps
    found = await scrape(coordinator)
    assert 299 <= of(found, "round_overdue_seconds") < 400
    assert of(found, "sweeper_leads") == 0
    assert await coordinator.sweeper._leader.holds()
    assert of(await scrape(coordinator), "sweeper_leads") == 1
    await coordinator.sweeper._leader.release()
    assert of(await scrape(coordinator), "sweeper_leads") == 0


async def test_a_snapshot_is_kept_for_a_while(coordinator: Coordinator) -> None:
    coordinator.app.state.books = Books(kept_s=60.0)
    await coordinator.enrol("site-a")
    assert of(await scrape(coordinator), "rounds", state="open") == 0
    await coordinator.run("site-a", round={"quorum": 1})
    assert of(await scrape(coordinator), "rounds", state="open") == 0
    coordinator.app.state.books = Books(kept_s=0.0, spent_kept_s=60.0)
    first = await scrape(coordinator)
    assert of(first, "rounds", state="open") == 1
    await coordinator.work("site-a")
    second = await scrape(coordinator)
    assert of(second, "queue", queue="work", state="ready") == 0
    name = "client_epsilon_committed"
    assert of(second, name, client="site-a") == of(first, name, client="site-a") == 0


async def test_strangers_get_nothing(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")

    async def by(token: str) -> Any:
        bearer = {"Authorization": f"Bearer {token}"}
        return await coordinator.http.get("/metrics", headers=bearer)

    problem(await coordinator.call("GET", "/metrics", None), 401, "unauthenticated")
    for who in ("site-a", "worker", "scientist"):
        problem(await coordinator.call("GET", "/metrics", who), 403, "forbidden")
    for who in ("admin", "auditor"):
        assert (await coordinator.call("GET", "/metrics", who)).status_code == 200
    problem(await by(TOKEN), 401, "unauthenticated")
    settings = coordinator.ctx.settings.model_copy(update={"metrics_token": SecretStr(TOKEN)})
    coordinator.app.state.context = replace(coordinator.ctx, settings=settings)
    assert (await by(TOKEN)).status_code == 200
    problem(await by(TOKEN[:-1]), 401, "unauthenticated")
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    refused = await coordinator.http.get("/v1/clients", headers=bearer)
    problem(refused, 401, "unauthenticated")


async def test_the_scraper_hears_that_the_database_is_away(coordinator: Coordinator) -> None:
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing", pool_size=2)
    settings = coordinator.ctx.settings.model_copy(update={"metrics_token": SecretStr(TOKEN)})
    coordinator.app.state.context = replace(coordinator.ctx, settings=settings, database=away)
    answer = await coordinator.http.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert "fhv_database_readable 0.0" in answer.text
    assert "fhv_rounds{" not in answer.text


def test_a_short_token_is_refused_and_an_empty_one_is_none(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"database_url": settings.database_url, "object_store_url": "file:///nowhere"}
    monkeypatch.setenv("FHV_TOKEN_PEPPER", "a pepper for tests only")
    monkeypatch.setenv("FHV_METRICS_TOKEN", "short-secret")
    with pytest.raises(SettingsError, match="FHV_METRICS_TOKEN") as error:
        load(Settings, **given)
    assert "short-secret" not in str(error.value)
    monkeypatch.setenv("FHV_METRICS_TOKEN", "")
    assert load(Settings, **given).metrics_token is None


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "docker/prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "docker/grafana/fedhypevae.json").read_text())[
        "panels"
    ]
    return found


async def test_rules_dashboard_and_list_name_what_a_scrape_has(coordinator: Coordinator) -> None:
    """A counter with labels has no sample before its first event: names are of families."""
    await coordinator.enrol("site-a")
    answer = await coordinator.call("GET", "/metrics", "admin")
    exported: set[str] = set()
    listed: set[str] = set()
    for family in parse(answer.text):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        exported |= {family.name + s for s in suffixes.get(family.type, ("",))}
        listed.add(family.name + ("_total" if family.type == "counter" else ""))
    in_rules = {name for rule in _rules() for name in _NAME.findall(rule["expr"])}
    in_panels = {
        name for panel in _panels() for target in panel["targets"] for name in _NAME.findall(
            target["expr"])
    }  # fmt: skip
    assert len(in_rules) >= 8
    assert len(in_panels) >= 15
    assert in_rules | in_panels <= exported, (in_rules | in_panels) - exported
    table = [line for line in (ROOT / "docs/metrics.md").read_text().splitlines() if "| `" in line]
    documented = {line.split("`")[1] for line in table} - {"process_*"}
    assert documented == {name for name in listed if name.startswith("fhv_")}


def test_rules_and_panels_are_complete() -> None:
    names = [rule["alert"] for rule in _rules()]
    assert len(names) == len(set(names))
    for rule in _rules():
        assert rule["annotations"]["summary"], rule
        assert rule["labels"]["severity"] in ("warning", "critical")
    panels = _panels()
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    (job,) = config["scrape_configs"]
    assert f'job="{job["job_name"]}"' in str(_rules())
    assert "credentials" not in job["authorization"], "secrets stand in files of their own"
