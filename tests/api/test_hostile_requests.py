"""Requests that are well formed for one reader and not for another, or larger than they look."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.wire.strict_json import MAX_DEPTH
from tests.api.support import SPACE, Coordinator, problem

_JSON = {"Content-Type": "application/json"}


def _with_dim(number: str) -> str:
    return json.dumps(SPACE).replace('"dim": 6', f'"dim": {number}')


def _deep(levels: int) -> bytes:
    return b'{"name": ' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (json.dumps(SPACE)[:-1].encode() + b', "name": "other"}', "name"),
        (_with_dim("NaN").encode(), "body"),
        (_with_dim("-Infinity").encode(), "body"),
        (_with_dim("1e400").encode(), "body"),
        (_with_dim("9" * 6_000).encode(), "body"),
        (_with_dim("9" * 400).encode(), "dim"),
        (json.dumps(SPACE).replace('"none"', '"\\u0000"', 1).encode(), "backbone"),
        (json.dumps(SPACE).replace('"none"', '"\\ud800"', 1).encode(), "backbone"),
        (json.dumps({**SPACE, "classes": ["a", "b\0"]}).encode(), "classes.1"),
        (_deep(MAX_DEPTH), "body"),
        (_deep(100_000), "body"),
        (json.dumps(SPACE).encode("utf-16"), "body"),
        (json.dumps(SPACE).encode("utf-8-sig"), "body"),
        (json.dumps(SPACE).encode().replace(b"tiny", b"\xff\xfe"), "body"),
        (json.dumps(SPACE).encode() + b"{}", "body"),
        (b"", None),
        (b"null", None),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_json_that_two_readers_read_differently_is_refused(
    coordinator: Coordinator, body: bytes, field: str | None
) -> None:
    answer = await coordinator.call("POST", "/v1/spaces", content=body, headers=_JSON)
    problem(answer, 422, "invalid-request", field)
    assert (await coordinator.ok("GET", "/v1/spaces"))["items"] == []


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("/v1/runs/{run}/rounds", {"after": str(2**31)}, "after"),
        ("/v1/runs/{run}/joins", {"after": str(2**63)}, "after"),
        ("/v1/runs/{run}/model", {"round": str(2**31)}, "round"),
        ("/v1/runs/{run}/report", {"round": "9" * 30}, "round"),
        ("/v1/runs/digits/export", {"round": str(2**31)}, "round"),
        ("/v1/events", {"round": str(2**31)}, "round"),
        ("/v1/events", {"since": "0.5"}, "since"),
        ("/v1/events", {"until": "1700000000"}, "until"),
        ("/v1/events", {"since": "99999-01-01T00:00:00Z"}, "since"),
        ("/v1/clients", {"limit": "1" + "0" * 5_000}, "limit"),
        ("/v1/synthesize", {"run": "r", "n": "9" * 5_000}, "n"),
        ("/v1/synthesize", {"run": "r", "n": "1", "seed": "9" * 5_000}, "seed"),
        ("/v1/synthesize", {"run": "r", "n": "1", "temperature": "nan"}, "temperature"),
        ("/v1/synthesize", {"run": "r", "n": "1", "mixture": "a:1e400"}, "mixture"),
        ("/v1/synthesize", {"run": "x" * 5_000, "n": "1"}, "run"),
    ],
)
async def test_numbers_and_times_beyond_what_is_kept_are_named(
    coordinator: Coordinator, path: str, query: dict[str, str], field: str
) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", start=False, approved=False)
    answer = await coordinator.call("GET", path.format(run=run["id"]), params=query)
    body: dict[str, Any] = problem(answer, 422, "invalid-request")
    assert body["field"].startswith(field), body


async def test_what_a_path_may_not_hold(coordinator: Coordinator) -> None:
    problem(await coordinator.call("GET", "/v1/spaces/%00"), 422, "invalid-request", "path")
    problem(await coordinator.call("GET", "/v1/synthesize?run=%00&n=1"), 422, "invalid-request")
    for name in ("..%2f..%2fetc%2fpasswd", "%2e%2e", "a%0d%0aX-Injected:%20y", "'%20OR%201=1--"):
        answer = await coordinator.call("GET", f"/v1/spaces/{name}")
        problem(answer, 404, "not-found")
        assert "X-Injected" not in answer.headers


async def test_a_wrong_method_is_told_all_the_right_ones(coordinator: Coordinator) -> None:
    for path, allowed in (
        ("/v1/spaces", "GET, POST"),
        ("/v1/synthesis-jobs/0199c0de-0000-7000-8000-000000000001", "DELETE, GET"),
        ("/synthesize", "GET, POST"),
    ):
        answer = await coordinator.call("PATCH", path)
        problem(answer, 405, "method-not-allowed")
        assert answer.headers["Allow"] == allowed


async def test_a_header_that_is_none_is_not_believed(coordinator: Coordinator) -> None:
    """Who calls, from where and by which method is not for a header to say."""
    await coordinator.enrol("site-a")
    for header in (
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "evil.example"},
        {"X-Original-URL": "/v1/tokens"},
        {"Host": "evil.example"},
    ):
        answer = await coordinator.call("GET", "/v1/clients/me", "site-a", headers=header)
        assert answer.status_code == 200
        assert "evil.example" not in answer.text + str(answer.headers)
    for token in ("", "x" * 8_000, "fhv_admin_", "fhv_admin_\u00e9"):
        value = f"Bearer {token}".encode("latin-1")
        answer = await coordinator.http.get("/v1/clients", headers={"Authorization": value})
        problem(answer, 401, "unauthenticated")
