"""kill -9 of the worker that makes a file: another one makes it, the same bytes, nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from api.embedded import free_port
from tests.api.test_coordinator_process import ROOT, call, environment, served
from tests.worker.real import federation

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROWS = 400_000
LEASE_S = "3"


@contextmanager
def worker(env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = "from worker.cli import worker_app; worker_app()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", "--queue", "synthesis"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


def until(http: httpx.Client, path: str, what: Any) -> dict[str, Any]:
    ends = time.monotonic() + 90
    while time.monotonic() < ends:
        shown: dict[str, Any] = http.get(path).json()
        if what(shown):
            return shown
        time.sleep(0.02)
    raise AssertionError(f"not in time: {shown}")


def test_another_worker_makes_the_same_file(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    with federation(database_url, tmp_path) as fed:
        fed.enrol("site-a", "site-a/all")
        run = fed.start("first", "site-a", privacy={"rounds": 0})
        fed.complete(run, {"site-a": fed.config("site-a", "site-a/all", "site-a")})
        pepper = fed.settings.token_pepper.get_secret_value()
    env = environment(
        database_url,
        tmp_path / "objects",
        FHV_BROKER_URL=broker_url,
        FHV_JOB_LEASE_S=LEASE_S,
        FHV_TOKEN_PEPPER=pepper,
        FHV_LOG_LEVEL="WARNING",
    )
    tokens = {
        scope: call(env, "token_app", "create", "--scope", scope, "--label", "x").stdout.strip()
        for scope in ("scientist", "worker")
    }
    port = free_port()
    with (
        served(env, port),
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={
                "Authorization": f"Bearer {tokens['scientist']}",
                "Accept-Encoding": "identity",
            },
            timeout=60,
        ) as http,
    ):
        body = {"run": "first", "n": ROWS, "seed": 7, "format": "ndjson", "columns": ["code_id"]}
        made = http.post("/v1/synthesis-jobs", json=body)
        assert made.status_code == 202, made.text
        path = made.headers["Location"]
        ours = {
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "FHV_COORDINATOR_URL": f"http://127.0.0.1:{port}",
            "FHV_BROKER_URL": broker_url,
            "FHV_OBJECT_STORE_URL": env["FHV_OBJECT_STORE_URL"],
            "FHV_TOKEN": tokens["worker"],
        }
        with worker(ours) as first:
            seen = until(http, path, lambda shown: shown["rows_done"] > 0)
            first.send_signal(signal.SIGKILL)
            first.wait(20)
        assert seen["state"] == "leased"
        assert 0 < seen["rows_done"] < ROWS
        with worker(ours):
            done = until(http, path, lambda shown: shown["state"] in ("done", "failed"))
        assert (done["state"], done["attempt"]) == ("done", 2), done
        file = http.get(done["file"])
        streamed = http.post("/v1/synthesize", json=body)
        assert file.content == streamed.content
        assert file.headers["X-FHV-Receipt"] == streamed.headers["X-FHV-Receipt"]
        with psycopg.connect(database_url) as connection:
            ends = time.monotonic() + 30
            while time.monotonic() < ends:  # the parts of the first attempt are forgotten
                parts = connection.execute(
                    "SELECT attempt, count(*), sum(size) FROM synthesis_parts GROUP BY 1"
                ).fetchall()
                connection.commit()
                if len(parts) == 1:
                    break
                time.sleep(0.2)
        assert [(attempt, int(size)) for attempt, _, size in parts] == [(2, len(file.content))]
