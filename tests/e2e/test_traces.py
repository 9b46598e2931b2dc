"""One trace over real HTTP and a real broker: a request, its message, the task, and back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.collector import collecting
from tests.worker.real import federation, issue

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
COORDINATOR, WORKER = "fedhypevae-coordinator", "fedhypevae-worker-coordinator"


@contextmanager
def worker(env: dict[str, str]) -> Iterator[None]:
    command = "from worker.cli import worker_app; worker_app()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", "--queue", "coordinator"], cwd=ROOT, env=env
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_one_trace_spans_coordinator_worker_and_back(
    database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("FHV_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("FHV_BROKER_URL", broker_url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with federation(database_url, tmp_path) as fed:
            fed.enrol("site-a", "site-a/all")
            run = fed.start("first", "site-a", privacy={"rounds": 0})
            fed.complete(run, {"site-a": fed.config("site-a", "site-a/all", "site-a")})
            tokens = {scope: issue(fed.settings, scope) for scope in ("admin", "worker")}
            env = {
                **os.environ,
                "FHV_COORDINATOR_URL": fed.url,
                "FHV_OBJECT_STORE_URL": fed.settings.object_store_url,
                "FHV_TOKEN": tokens["worker"],
            }
            bearer = {"Authorization": f"Bearer {tokens['admin']}"}
            with worker(env), httpx.Client(base_url=fed.url, headers=bearer, timeout=40) as http:
                asked = http.post(f"/v1/runs/{run}/rounds/0/replay", params={"wait": 30})
                assert asked.status_code == 202, asked.text
                assert asked.json()["same"] is True, asked.text
            pepper = fed.settings.token_pepper.get_secret_value()
        spans = collector.until(
            lambda seen: (
                {"POST /v1/jobs/{job_id}/complete", "process fhv.replay"}
                <= {span.name for span in seen if span.parent}
            )
        )
    by_id = {span.id: span for span in spans}
    (task,) = [span for span in spans if span.name == "process fhv.replay"]
    (done,) = [
        span
        for span in spans
        if span.name == "POST /v1/jobs/{job_id}/complete" and span.trace == task.trace
    ]
    way = [done]
    while way[-1].parent in by_id:
        way.append(by_id[way[-1].parent])
    assert [(span.service, span.name) for span in reversed(way)] == [
        (COORDINATOR, "POST /v1/runs/{run_id}/rounds/{number}/replay"),
        (COORDINATOR, "announce fhv.replay"),
        (COORDINATOR, "send fhv.replay"),
        (WORKER, "process fhv.replay"),
        (WORKER, "POST"),
        (COORDINATOR, "POST /v1/jobs/{job_id}/complete"),
    ]
    assert len({span.trace for span in way}) == 1
    assert way[-1].parent == "", "it begins with the request"
    statements = [span for span in spans if span.trace == done.trace and span.parent == done.id]
    assert {span.name for span in statements} >= {"SELECT", "UPDATE"}
    sent = b"".join(collector.raw)
    for secret in (*tokens.values(), pepper):
        assert secret.encode() not in sent
    assert not any(span.failed for span in spans if span.trace == done.trace)
