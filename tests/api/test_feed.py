"""The live feed of a run over real servers: resumed, shared by replicas, bounded, cheap."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import psycopg
import pytest

from api.db.engine import _GLANCES
from api.embedded import free_port
from core.federation.plan import RunSpec
from core.wire.messages import CONTENT_TYPE_TENSORS, LEASE_HEADER
from tests.api.support import SPACE, a_plan, update_body
from tests.api.test_coordinator_process import call, environment, served

pytestmark = pytest.mark.timeout(240)
NIL = "00000000-0000-0000-0000-000000000000"


class World:
    """A coordinator process (or two) with two sites and a run that is open."""

    def __init__(self, env: dict[str, str], ports: list[int], database_url: str) -> None:
        self.env, self.database_url = env, database_url
        self.bases = [f"http://127.0.0.1:{port}" for port in ports]
        made = call(env, "token_app", "create", "--scope", "admin", "--label", "ops")
        self.tokens = {"admin": made.stdout.strip()}
        self.ids: dict[str, str] = {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx.Client(timeout=60, limits=limits)

    def request(self, method: str, path: str, who: str = "admin", at: int = 0, **how: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.tokens[who]}", **how.pop("headers", {})}
        answer = self.http.request(method, self.bases[at] + path, headers=headers, **how)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def begin(self) -> dict[str, Any]:
        self.request("POST", "/v1/spaces", json=SPACE)
        for name in ("site-a", "site-b"):
            body = {
                "name": name, "space": "tiny", "site": name, "population": name, "unit": "record",
                "managed": False, "budget": {"epsilon": 8.0, "delta": 1e-5},
            }  # fmt: skip
            made = self.request("POST", "/v1/clients", json=body)
            self.tokens[name], self.ids[name] = made["token"], made["client"]["id"]
        rules = {"quorum": 2, "deadline_s": 600.0, "lease_s": 120.0}
        plan = a_plan(round=rules, privacy={"rounds": 0})
        body = {"plan": plan, "clients": ["site-a", "site-b"]}
        run: dict[str, Any] = self.request("POST", "/v1/runs", json=body)
        self.run_id = run["id"]
        for name in self.ids:
            word = {"client": name, "decision": "approve", "by": "person"}
            word["spec_digest"] = run["spec_digest"]
            self.request("POST", f"/v1/runs/{self.run_id}/consents", name, json=word)
        self.request("POST", f"/v1/runs/{self.run_id}/start")
        return run

    def post_update(self, name: str, at: int = 0) -> None:
        path = f"/v1/clients/{self.ids[name]}/work"
        order = self.request("GET", path, name, at, params={"wait": 30})
        self.request(
            "PUT",
            f"/v1/runs/{self.run_id}/rounds/0/updates/{uuid4()}",
            name,
            at,
            content=update_body(RunSpec.model_validate(order["spec"]), 0, seed=ord(name[-1])),
            headers={
                LEASE_HEADER: order["lease_token"], "Content-Type": CONTENT_TYPE_TENSORS,
            },
        )  # fmt: skip

    @contextmanager
    def feed(
        self, who: str = "admin", at: int = 0, last: str = "", **query: str
    ) -> Iterator[Iterator[dict[str, Any]]]:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        if last:
            headers["Last-Event-ID"] = last
        url = f"{self.bases[at]}/v1/runs/{self.run_id}/events"
        with self.http.stream("GET", url, headers=headers, params=query) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield events(answer)


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """A reader of this test's own, not the one of the product."""
    event: dict[str, Any] = {"id": None}
    for line in answer.iter_lines():
        if line.startswith(":"):
            yield {"event": "comment", "id": None, "data": {}}
        elif not line:
            if "event" in event:
                yield event
            event = {"id": None}
        else:
            name, _, value = line.partition(": ")
            event[name] = json.loads(value) if name == "data" else value


def until(feed: Iterator[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    seen = []
    for event in feed:
        seen.append(event)
        if event["event"] == kind:
            return seen
    raise AssertionError(f"the feed ended without {kind!r}: {[e['event'] for e in seen]}")


@contextmanager
def world(database_url: str, folder: Path, replicas: int = 1, **more: str) -> Iterator[World]:
    env = environment(database_url, folder, FHV_LOG_LEVEL="WARNING", **more)
    ports = [free_port() for _ in range(replicas)]
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(served(env, port))
        here = World(env, ports, database_url)
        stack.callback(here.http.close)
        yield here


def test_a_feed_tells_a_run_to_its_end_and_goes_on_after_a_break(
    database_url: str, tmp_path: Path
) -> None:
    with world(database_url, tmp_path) as here:
        here.begin()
        with here.feed(from_start="true") as feed:
            (state, *rest) = until(feed, "round-moved")
        assert (state["event"], state["id"]) == ("state", NIL)
        assert state["data"]["run_id"] == here.run_id
        assert [event["event"] for event in rest] == [
            "run-created",
            "consent-approved",
            "consent-approved",
            "run-started",
            "round-moved",
        ]
        assert rest[-1]["data"]["detail"]["state"] == "open"
        here.post_update("site-a")  # nobody listens
        with here.feed(last=rest[-1]["id"]) as feed:
            again = until(feed, "update-accepted")
            assert [event["event"] for event in again] == [
                "state",
                "work-leased",
                "update-accepted",
            ]
            assert again[0]["id"] is None  # no place to go on from: events before it follow
            assert again[0]["data"]["round"]["updates_accepted"] == 1
            here.post_update("site-b")  # while somebody listens
            live = until(feed, "round-moved")
            assert [e["event"] for e in live] == ["work-leased", "update-accepted", "round-moved"]
        here.request("POST", f"/v1/runs/{here.run_id}/cancel")
        with here.feed(last=live[-1]["id"]) as feed:
            end = list(feed)
        assert end[-1]["event"] == "end"
        assert end[-1]["data"]["state"] == "cancelled"
        parts = rest + again[1:] + live + end[1:-1]
        page = here.request("GET", f"/v1/events?run={here.run_id}&limit=200")
        assert [part["id"] for part in parts] == [item["id"] for item in page["items"]]
        with here.feed() as feed:
            assert [event["event"] for event in feed] == ["state", "end"]
        for wrong in ("nonsense", str(uuid4())):
            refused = httpx.get(
                f"{here.bases[0]}/v1/runs/{here.run_id}/events",
                headers={
                    "Authorization": f"Bearer {here.tokens['admin']}", "Last-Event-ID": wrong
                },
            )  # fmt: skip
            assert (refused.status_code, refused.json()["field"]) == (422, "Last-Event-ID")


def test_a_client_is_not_told_about_others_and_a_revoked_token_hears_nothing_more(
    database_url: str, tmp_path: Path
) -> None:
    with world(database_url, tmp_path, FHV_HEARTBEAT_S="0.5") as here:
        here.begin()
        with here.feed("site-a", from_start="true") as feed:
            until(feed, "round-moved")
            here.post_update("site-b")
            here.post_update("site-a")
            seen = until(feed, "update-accepted") + until(feed, "round-moved")
            text = json.dumps(seen)
            assert here.ids["site-a"] in text
            assert here.ids["site-b"] not in text
            assert "site-b" not in text
            assert {e["data"]["token_id"] for e in seen if e["event"] != "comment"} == {None}
            moved = [e["data"]["detail"] for e in seen if e["event"] == "round-moved"]
            assert set(moved[0]) == {"state"}
            assert until(feed, "comment")
            for token in here.request("GET", "/v1/tokens")["items"]:
                if token["client_id"] == here.ids["site-a"]:
                    here.request("POST", f"/v1/tokens/{token['id']}/revoke")
            began = time.monotonic()
            for _ in feed:
                pass
            assert time.monotonic() - began < 20
        path = f"{here.bases[0]}/v1/runs/{here.run_id}/events"
        assert httpx.get(path).status_code == 401


def test_what_one_replica_does_is_heard_at_the_other(database_url: str, tmp_path: Path) -> None:
    with world(database_url, tmp_path, replicas=2) as here:
        here.begin()
        with here.feed(at=1) as feed:
            assert next(feed)["event"] == "state"
            began = time.monotonic()
            here.post_update("site-a", at=0)
            seen = until(feed, "update-accepted")
            took = time.monotonic() - began
        # Far below the heartbeat of 15 s, which is when a feed looks by itself.
        assert took < 10
        with here.feed(at=0, last=seen[-1]["id"]) as feed:  # resumed at the other one
            here.post_update("site-b", at=1)
            kinds = [event["event"] for event in until(feed, "update-accepted")]
            assert kinds == ["state", "work-leased", "update-accepted"]


def _connections(url: str) -> int:
    with psycopg.connect(url) as connection:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fedhypevae-api' "
            "AND datname = current_database()"
        )
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def test_many_quiet_feeds_are_cheap_and_bounded_and_end_with_the_process(
    database_url: str, tmp_path: Path
) -> None:
    # Little is logged: nobody reads the pipe to which this process writes.
    more = {"FHV_MAX_STREAMS": "200", "FHV_DATABASE_POOL": "4", "FHV_LOG_LEVEL": "ERROR"}
    env = environment(database_url, tmp_path, **more)
    port = free_port()
    with served(env, port) as process, ExitStack() as stack:
        here = World(env, [port], database_url)
        stack.callback(here.http.close)
        here.begin()
        client = psutil.Process(process.pid)
        with here.feed() as feed:
            next(feed)
        before = client.memory_info().rss
        feeds = [stack.enter_context(here.feed()) for _ in range(200)]
        assert {next(feed)["event"] for feed in feeds} == {"state"}
        grown = (client.memory_info().rss - before) / 2**20
        assert grown < 60, f"{grown:.1f} MiB"
        # The pool, the glances, LISTEN, the sweeper's lock: as many as without any feed.
        assert _connections(database_url) <= 4 + _GLANCES + 2
        one_more = httpx.get(
            f"{here.bases[0]}/v1/runs/{here.run_id}/events",
            headers={"Authorization": f"Bearer {here.tokens['admin']}"},
        )
        assert (one_more.status_code, one_more.json()["code"]) == (429, "too-many-streams")
        assert "FHV_MAX_STREAMS" in one_more.json()["mend"]
        assert one_more.headers["Retry-After"]
        here.post_update("site-a")
        for feed in feeds:
            until(feed, "update-accepted")
        began = time.monotonic()
        process.terminate()
        ended = threading.Event()
        threading.Thread(target=lambda: (process.wait(20), ended.set()), daemon=True).start()
        for feed in feeds:
            list(feed)
        assert ended.wait(20)
        assert time.monotonic() - began < 9  # not cut off by force after 10 s


def test_a_feed_that_was_left_frees_its_place(database_url: str, tmp_path: Path) -> None:
    with world(database_url, tmp_path, FHV_MAX_STREAMS="1") as here:
        here.begin()
        for _ in range(3):
            with here.feed() as feed:
                next(feed)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    with here.feed() as feed:
                        next(feed)
                    break
                except AssertionError:
                    time.sleep(0.05)
            else:
                raise AssertionError("the place was not given back")
            time.sleep(0.2)
