"""A published round is recomputed by a real worker, over a real broker, from the real store."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from api.embedded import free_port
from tests.api.test_coordinator_process import ROOT, call, environment, served
from tests.api.test_feed import World, until
from worker.client import CoordinatorClient

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_a_worker_finds_the_same_bytes_and_hears_of_others(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    store = tmp_path / "objects"
    env = environment(database_url, store, FHV_BROKER_URL=broker_url, FHV_LOG_LEVEL="WARNING")
    port = free_port()
    with served(env, port), ExitStack() as stack:
        here = World(env, [port], database_url)
        stack.callback(here.http.close)
        made = call(env, "token_app", "create", "--scope", "worker", "--label", "sums")
        worker = subprocess.Popen(
            [
                sys.executable, "-c", "from worker.cli import worker_app; worker_app()",
                "run", "--queue", "coordinator",
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                "PATH": os.environ["PATH"],
                "OMP_NUM_THREADS": "1",
                "FHV_COORDINATOR_URL": here.bases[0],
                "FHV_BROKER_URL": broker_url,
                "FHV_OBJECT_STORE_URL": env["FHV_OBJECT_STORE_URL"],
                "FHV_TOKEN": made.stdout.strip(),
            },
        )  # fmt: skip
        try:
            here.begin()
            with here.feed() as feed:
                here.post_update("site-a")
                here.post_update("site-b")
                assert until(feed, "end")[-1]["data"]["state"] == "completed"
            before = sorted(path for path in store.rglob("*") if path.is_file())
            with CoordinatorClient(here.bases[0], here.tokens["admin"]) as admin:
                done = admin.replay(here.run_id, 0, wait_s=60)
                assert (done["state"], done["same"]) == ("done", True), done
                again = admin.replay_result(here.run_id, 0, done["id"])
                assert again == done
                assert sorted(path for path in store.rglob("*") if path.is_file()) == before
                # The real client follows the real feed, from the beginning to the end.
                kinds = [event.kind for event in admin.follow_run(here.run_id, from_start=True)]
                assert (kinds[0], kinds[1], kinds[-1]) == ("state", "run-created", "end")
                page = admin.events(run=here.run_id, limit=200)
                assert [item["kind"] for item in page["items"]] == kinds[1:-1]
                admin.erase_updates(here.ids["site-a"])
            refused = CoordinatorClient(here.bases[0], here.tokens["admin"])
            with refused, pytest.raises(Exception, match="not-replayable"):
                refused.replay(here.run_id, 0)
        finally:
            worker.terminate()
            worker.wait(30)
