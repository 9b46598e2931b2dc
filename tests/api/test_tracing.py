"""Spans: none without a collector; with one, what was asked, and never a secret or a site."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from api.app import create_app
from api.config import Settings, SettingsError, load
from core import tracing
from core.federation import rule
from tests.api.support import Coordinator, calibrate, problem
from tests.collector import Collector, collecting
from worker.config import load_settings
from worker.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


@pytest.fixture
async def traced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Coordinator, Collector]]:
    monkeypatch.setattr(rule, "calibrate", calibrate)
    with collecting() as collector:
        app = create_app(
            settings.model_copy(update={"otlp_endpoint": collector.url}), background=False
        )
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://api.test") as http:
                yield Coordinator(app, http), collector
    assert not tracing.is_on()


def test_off_means_that_nothing_is_imported() -> None:
    code = (
        "import sys; from core import tracing; import api.app, worker.client;"
        "s = tracing.span('x', attributes={'no': 'list'}); assert s is tracing.span('y');"
        "assert tracing.headers() == {} and tracing.current() is None;"
        "bad = [m for m in sys.modules if m.startswith(('opentelemetry.sdk.trace',"
        "'opentelemetry.exporter', 'google.protobuf'))]; sys.exit(str(bad) if bad else 0)"
    )
    kept = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


async def test_without_a_collector_messages_carry_nothing(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    await coordinator.run("site-a", round={"quorum": 1})
    await coordinator.work("site-a")
    await coordinator.sweep()
    rows = await coordinator.sql("SELECT task, trace FROM outbox")
    assert [tuple(row) for row in rows] == [("fhv.aggregate", None)]


async def test_a_request_and_its_statements_are_one_trace(
    traced: tuple[Coordinator, Collector],
) -> None:
    coordinator, collector = traced
    answer = await coordinator.call(
        "GET", "/v1/runs?limit=7", "admin", headers={tracing.HEADER: PARENT, "X-Request-ID": "r-1"}
    )
    assert answer.status_code == 200
    problem(await coordinator.call("GET", "/v1/runs", None), 401, "unauthenticated")
    tracing.stop()
    first = next(span for span in collector.spans if span.trace == "ab" * 16 and span.kind == 2)
    assert (first.service, first.name) == ("fedhypevae-coordinator", "GET /v1/runs")
    assert first.parent == "cd" * 8
    assert first.attributes == {
        "http.request.method": "GET",
        "http.route": "/v1/runs",
        "http.response.status_code": 200,
        "fhv.request_id": "r-1",
    }
    below = [span for span in collector.spans if span.parent == first.id]
    assert {span.name for span in below} == {"SELECT"}
    assert len(below) >= 2, "the token's and the page's"
    refused = [span for span in collector.spans if span.attributes.get("fhv.problem")]
    assert [span.attributes["fhv.problem"] for span in refused] == ["unauthenticated"]
    assert refused[0].trace != first.trace


async def test_no_secret_and_no_site_is_in_a_trace(traced: tuple[Coordinator, Collector]) -> None:
    coordinator, collector = traced
    await coordinator.enrol("site-a", "site-b")
    await coordinator.enrol("site-c", managed=True)
    run = await coordinator.run("site-a", "site-b", "site-c", privacy={"rounds": 0})
    for number, name in enumerate(("site-a", "site-b")):
        order = await coordinator.poll(name)
        assert order is not None
        problem(await coordinator.send(order, b"bad", update_id=order["work_id"]), 422,
                "update-unreadable")  # fmt: skip
        assert (await coordinator.send(order, lease=order["lease_token"])).status_code == 201
        assert number < 2
    (managed,) = await coordinator.managed_work("site-c")
    claim = await coordinator.ok("POST", f"/v1/work/{managed.id}/claim", "worker")
    assert (await coordinator.send(claim, who="worker")).status_code == 201
    await coordinator.aggregate()
    traces = dict(await coordinator.sql("SELECT task, trace FROM outbox"))
    assert traces.pop("fhv.aggregate").startswith("00-")
    assert traces == {"fhv.consent": None, "fhv.train": None}
    tracing.stop()
    assert {span.name for span in collector.spans} >= {
        "POST /v1/jobs/{job_id}/claim", "announce fhv.aggregate", "POST /v1/runs",
    }  # fmt: skip
    for span in collector.spans:
        assert set(span.attributes) <= tracing.ATTRIBUTES
        assert span.events == 0
        assert "work" not in span.name
        assert "updates" not in span.name
    sent = b"".join(collector.raw)
    hidden = [*coordinator.tokens.values(), order["lease_token"], "site-a", "hospital-site-a"]
    for secret in [*hidden, coordinator.ctx.settings.token_pepper.get_secret_value()]:
        assert secret.encode() not in sent
    assert run["id"].encode() not in sent


async def test_a_crash_is_named_by_its_type(traced: tuple[Coordinator, Collector]) -> None:
    _, collector = traced
    with (
        pytest.raises(RuntimeError),
        tracing.span("outer"),
        tracing.child("inner", "client", {"db.system.name": "postgresql"}),
    ):
        raise RuntimeError("the secret is forty-two")
    with pytest.raises(ValueError, match="no span has"), tracing.span("x", attributes={"n": 7}):
        pass
    tracing.stop()
    found = {span.name: span for span in collector.spans}
    assert found["inner"].parent == found["outer"].id
    for span in (found["inner"], found["outer"]):
        assert (span.failed, span.attributes["error.type"]) == (True, "RuntimeError")
    assert b"forty-two" not in b"".join(collector.raw)


def test_an_unusable_collector_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, no_fhv_environment: None
) -> None:
    given = {"env": "dev", "database_url": settings.database_url, "object_store_url": "file:///x"}
    for url in ("collector:4318", "https://", "http://user:hunter2@collector"):
        monkeypatch.setenv("FHV_OTLP_ENDPOINT", url)
        with pytest.raises(SettingsError, match="FHV_OTLP_ENDPOINT") as error:
            load(Settings, **given)
        assert "hunter2" not in str(error.value)
        with pytest.raises(ConfigError, match="FHV_OTLP_ENDPOINT"):
            load_settings()
    monkeypatch.setenv("FHV_OTLP_ENDPOINT", "http://collector:4318/")
    assert load(Settings, **given).otlp_endpoint == "http://collector:4318"
    monkeypatch.setenv("FHV_OTLP_ENDPOINT", "")
    assert load(Settings, **given).otlp_endpoint is None
    monkeypatch.delenv("FHV_OTLP_ENDPOINT")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://usual:4318")
    assert load(Settings, **given).otlp_endpoint == "http://usual:4318"
    assert load_settings().otlp_endpoint == "http://usual:4318"
