"""The feed of a run at the client's side: parsed, resumed behind the last event, given up."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.worker.support import FAST, problem
from worker.client import CoordinatorClient
from worker.errors import ApiProblem, UnexpectedAnswer, Unreachable
from worker.feed import RunEvent, parse


def block(kind: str, event_id: str | None = None, **data: object) -> str:
    named = "" if event_id is None else f"id: {event_id}\n"
    return f"{named}event: {kind}\ndata: {json.dumps(data)}\n\n"


HELLO = "retry: 2000\n\n" + block("state", "e0", state="running")


class Server:
    """Answers one request after the other with these; remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | str | Exception) -> None:
        self.answers = iter(answers)
        self.asked: list[tuple[str | None, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/runs/run-1/events"
        self.asked.append((request.headers.get("Last-Event-ID"), request.url.query.decode()))
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        headers = {"Content-Type": "text/event-stream"}
        return httpx.Response(200, headers=headers, content=answer.encode())

    def client(self) -> CoordinatorClient:
        transport = httpx.MockTransport(self)
        return CoordinatorClient("http://x", "t", retry=FAST, transport=transport)


def test_events_are_parsed_and_comments_skipped() -> None:
    text = HELLO + ": heartbeat\n\n" + block("round-moved", "e1", round=3) + "event: cut\ndata: {"
    assert list(parse(text.split("\n"))) == [
        RunEvent("state", "e0", {"state": "running"}),
        RunEvent("round-moved", "e1", {"round": 3}),
    ]
    assert list(parse(["data: {", 'data: "a": 1}', ""])) == [RunEvent("", None, {"a": 1})]
    for wrong in ("data: nothing", "data: [1]"):
        with pytest.raises(UnexpectedAnswer):
            list(parse([wrong, ""]))


def test_a_broken_feed_goes_on_behind_the_last_event() -> None:
    server = Server(
        HELLO + block("work-leased", "e1") + "id: e2\nevent: cut off",
        httpx.ConnectError("away"),
        block("state", state="running") + block("round-moved", "e2"),
        httpx.Response(503),
        block("state", state="completed") + block("run-completed", "e3") + block("end", state="x"),
    )
    seen = list(server.client().follow_run("run-1", from_start=True))
    ids = [event.id for event in seen if event.kind != "state"]
    assert ids == ["e1", "e2", "e3", None]
    assert seen[-1].kind == "end"
    assert server.asked == [
        (None, "from_start=true"),
        ("e1", ""),
        ("e1", ""),
        ("e2", ""),
        ("e2", ""),
    ]


def test_a_follower_goes_on_where_an_earlier_one_stopped() -> None:
    server = Server(block("state", state="running") + block("end"))
    assert len(list(server.client().follow_run("run-1", last_event_id="e9"))) == 2
    assert server.asked == [("e9", "")]


def test_a_coordinator_that_stays_away_is_given_up() -> None:
    server = Server(HELLO, *[httpx.ConnectError("away")] * 10)

    def follow() -> Iterator[RunEvent]:
        return server.client().follow_run("run-1")

    with pytest.raises(Unreachable):
        list(follow())
    assert 1 < len(server.asked) < 6


def test_a_refusal_is_final() -> None:
    server = Server(problem(404, "not-found"))
    with pytest.raises(ApiProblem, match="not-found"):
        list(server.client().follow_run("run-1"))
    assert len(server.asked) == 1


def test_too_many_streams_are_waited_for() -> None:
    busy = problem(429, "too-many-streams")
    server = Server(busy, HELLO + block("end"))
    assert [event.kind for event in server.client().follow_run("run-1")] == ["state", "end"]
