"""The HTTP client: what is retried, what is final, and what an error tells."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import stamina

from core.wire.messages import LEASE_HEADER, PROTOCOL_HEADER, WorkFailure
from core.wire.protocol import RANGE_HEADER
from tests.worker.support import FAST, make_order, problem, space
from worker.answers import Retry
from worker.cache import ObjectCache, digest_of_bytes
from worker.client import CoordinatorClient
from worker.errors import (
    ApiProblem,
    ConfigError,
    DownloadCorrupt,
    OrderUnreadable,
    UnexpectedAnswer,
    Unreachable,
)

TOKEN = "fhv_client_do-not-show"
Handler = Callable[[httpx.Request], httpx.Response]


def connect(handler: Handler, *, retry: Retry = FAST, **more: Any) -> CoordinatorClient:
    return CoordinatorClient(
        "http://127.0.0.1:1/", TOKEN, retry=retry, transport=httpx.MockTransport(handler), **more
    )


def answers(*given: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """One after the other; the last one again and again."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        answer = given[min(len(seen), len(given) - 1)]
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler, seen


def test_headers_of_a_request() -> None:
    handler, seen = answers(httpx.Response(200, json={"ok": True}))
    with connect(handler) as client:
        assert client.alive() == {"ok": True}
    assert seen[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert seen[0].headers[PROTOCOL_HEADER] == "3"
    assert seen[0].headers[RANGE_HEADER] == "1-3"
    assert TOKEN not in repr(client)


@pytest.mark.parametrize(
    "first",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("silent"),
        httpx.RemoteProtocolError("cut"),
        httpx.Response(502),
        httpx.Response(503),
        httpx.Response(504),
        httpx.Response(429, headers={"Retry-After": "0"}),
    ],
)
def test_not_now_is_retried(first: httpx.Response | Exception) -> None:
    handler, seen = answers(first, httpx.Response(200, json={"state": "open"}))
    assert connect(handler).run("r1") == {"state": "open"}
    assert len(seen) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
def test_everything_else_is_not(status: int) -> None:
    handler, seen = answers(problem(status, "some-code", field="plan.x", mend="Do this."))
    with pytest.raises(ApiProblem) as raised:
        connect(handler).run("r1")
    assert len(seen) == 1
    error = raised.value
    assert (error.problem, error.status, error.field, error.request_id) == (
        "some-code", status, "plan.x", "req-1",
    )  # fmt: skip
    assert "detail of some-code" in str(error)
    assert "Do this." in str(error)
    assert error.final == (status in (400, 404, 409, 413, 422))


def test_retries_end_and_say_what_was_asked() -> None:
    handler, seen = answers(httpx.Response(503, headers={"Retry-After": "0.01"}))
    with pytest.raises(Unreachable) as raised:
        connect(handler).run("r1")
    assert len(seen) == FAST.attempts
    assert raised.value.retry_after_s == 0.01


def asked_to_wait(header: str) -> float | None:
    handler, _ = answers(httpx.Response(429, headers={"Retry-After": header}))
    with pytest.raises(Unreachable) as raised:
        connect(handler, retry=Retry(attempts=1)).run("r1")
    return raised.value.retry_after_s


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("99999", 120), ("-3", 0), ("soon", None), ("nan", None)]
)
def test_retry_after_in_seconds(header: str, seconds: float | None) -> None:
    assert asked_to_wait(header) == seconds


def test_retry_after_as_a_date() -> None:
    seconds = asked_to_wait(format_datetime(datetime.now(UTC) + timedelta(seconds=60)))
    assert seconds is not None
    assert 30 <= seconds <= 61


def test_retry_after_decides_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    handler, _ = answers(
        httpx.Response(429, headers={"Retry-After": "17"}), httpx.Response(200, json={})
    )
    connect(handler, retry=Retry(attempts=2, total_s=60)).run("r1")
    assert slept == [17.0]


def test_back_off_grows_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    handler, _ = answers(httpx.ConnectError("refused"))
    retry = Retry(attempts=5, total_s=1e9, first_s=1.0, longest_s=4.0, jitter_s=0.5)
    with pytest.raises(Unreachable):
        connect(handler, retry=retry).run("r1")
    assert len(slept) == 4
    assert all(
        low <= s <= high for s, low, high in zip(slept, (1, 2, 4, 4), (1.5, 2.5, 4, 4), strict=True)
    )


def test_an_update_is_resent_as_the_same_bytes_under_the_same_id() -> None:
    receipt = {
        "update_id": "u1", "run_id": "r1", "round_number": 3, "client_id": "c1",
        "digest": "sha256:" + hashlib.sha256(b"abc").hexdigest(), "size": 3,
    }  # fmt: skip
    handler, seen = answers(
        httpx.ConnectError("x"), httpx.Response(503), httpx.Response(201, json=receipt)
    )
    got = connect(handler).put_update(
        run_id="r1", round_number=3, update_id="u1", lease_token="l", body=b"abc"
    )
    assert got.update_id == "u1"
    assert {(r.method, r.url.path, r.content, r.headers[LEASE_HEADER]) for r in seen} == {
        ("PUT", "/v1/runs/r1/rounds/3/updates/u1", b"abc", "l")
    }
    assert seen[0].headers["Content-Type"] == "application/vnd.fedhypevae.tensors+safetensors"


def test_a_long_poll_waits_longer_than_the_coordinator() -> None:
    handler, seen = answers(httpx.Response(204))
    assert connect(handler).next_work("c1", wait_s=25.0) is None
    assert seen[0].url.params["wait"] == "25"
    assert seen[0].extensions["timeout"]["read"] > 25.0
    assert seen[0].extensions["timeout"]["connect"] < 25.0


def test_a_long_poll_is_left_to_the_loop() -> None:
    handler, seen = answers(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable):
        connect(handler).next_work("c1")
    assert len(seen) == 1


def test_an_order_arrives_whole() -> None:
    order = make_order()
    handler, _ = answers(httpx.Response(200, content=order.model_dump_json()))
    assert connect(handler).claim_work("w") == order


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "noise", "sketch_multiplier"), 0.0),
        (("event", "noise_multiplier"), 0.0),
        (("event", "sample_rate"), 1.5),
        (("spec", "plan", "privacy", "delta"), 1.0),
        (("spec", "protocol"), 2),
        (("surprise",), 1),
    ],
)
def test_an_impossible_order_keeps_what_is_needed_to_give_it_back(
    path: tuple[str, ...], value: float
) -> None:
    raw = make_order().model_dump(mode="json")
    inner = raw
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    handler, _ = answers(httpx.Response(200, json=raw))
    with pytest.raises(OrderUnreadable) as raised:
        connect(handler).next_work("c1")
    assert (raised.value.work_id, raised.value.lease_token) == (raw["work_id"], raw["lease_token"])
    assert any(path[-1] in line for line in raised.value.problems)
    assert raw["lease_token"] not in str(raised.value)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404, text="<html>a proxy's page</html>"),
        httpx.Response(302, headers={"Location": "http://elsewhere/"}),
        httpx.Response(200, text="not json"),
        httpx.Response(200, json=[1]),
        httpx.Response(400, headers={"Content-Type": "application/problem+json"}, text="{"),
    ],
)
def test_answers_of_somebody_else_are_named_as_such(answer: httpx.Response) -> None:
    handler, seen = answers(answer)
    with pytest.raises(UnexpectedAnswer):
        connect(handler).run("r1")
    assert len(seen) == 1


@pytest.mark.parametrize("token", ["bad\ntoken", "bad token", "b\u00e4d"])
def test_a_token_that_no_header_can_carry_is_not_quoted(token: str) -> None:
    with pytest.raises(ConfigError) as raised:
        CoordinatorClient("http://127.0.0.1:9", token)
    assert token not in str(raised.value)
    assert raised.value.field == "token"


def test_an_id_cannot_reach_into_another_path() -> None:
    handler, seen = answers(httpx.Response(200, json={}))
    connect(handler).run("../clients/me?x=1#y")
    assert seen[0].url.raw_path == b"/v1/runs/..%2Fclients%2Fme%3Fx%3D1%23y"
    for bad in ("", ".", ".."):
        with pytest.raises(UnexpectedAnswer):
            connect(handler).run(bad)


def test_failures_carry_a_code_only() -> None:
    handler, seen = answers(httpx.Response(204))
    connect(handler).fail_work("w", "l", WorkFailure(code="site-not-ready"))
    assert seen[0].read() == b'{"code":"site-not-ready"}'
    assert seen[0].headers[LEASE_HEADER] == "l"


def test_enrolment_shows_the_token_once_and_never_in_its_repr() -> None:
    handler, seen = answers(httpx.Response(201, json={"client": {"id": "c"}, "token": "fhv_x"}))
    given = connect(handler).enrol_client(
        name="a", space="s", site="x", population="p", unit="record", managed=False,
        epsilon=8.0, delta=1e-5,
    )  # fmt: skip
    assert given.token == "fhv_x"
    assert "fhv_x" not in repr(given)
    assert seen[0].headers["Idempotency-Key"]


def test_tables_come_with_seed_and_model() -> None:
    good = {"X-FHV-Seed": "7", "X-FHV-Model": "sha256:m"}
    handler, seen = answers(httpx.Response(200, headers=good, content=b"PAR1"))
    table = connect(handler).synthesize_table({"run": "r", "n": 3})
    assert (table.body, table.seed, table.model) == (b"PAR1", 7, "sha256:m")
    assert b'"format":"parquet"' in seen[0].read()
    handler, _ = answers(httpx.Response(200, content=b"PAR1"))
    with pytest.raises(UnexpectedAnswer):
        connect(handler).synthesize_table({"run": "r"})


def test_spaces_are_posted_as_they_are() -> None:
    handler, seen = answers(httpx.Response(201, json={"id": "s"}))
    connect(handler).create_space(space())
    assert space() == type(space()).model_validate_json(seen[0].read())


# --- downloads ---

OBJECT = b"weights" * 1000
DIGEST = "sha256:" + hashlib.sha256(OBJECT).hexdigest()


def test_a_download_is_verified_and_cached(tmp_path: Path) -> None:
    handler, seen = answers(httpx.Response(503), httpx.Response(200, content=OBJECT))
    client = connect(handler, cache=ObjectCache(tmp_path / "objects"))
    assert client.download(DIGEST, size=len(OBJECT)) == OBJECT
    assert client.download(DIGEST, size=len(OBJECT)) == OBJECT
    assert len(seen) == 2  # one failure, one download, then the cache
    (file,) = (tmp_path / "objects").iterdir()
    file.write_bytes(b"torn")
    assert client.download(DIGEST) == OBJECT
    assert len(seen) == 3


@pytest.mark.parametrize("body", [OBJECT[:-1], OBJECT + b"x", b"y" * len(OBJECT)])
def test_other_bytes_are_refused(body: bytes, tmp_path: Path) -> None:
    handler, _ = answers(httpx.Response(200, content=body))
    client = connect(handler, cache=ObjectCache(tmp_path / "objects"))
    with pytest.raises(DownloadCorrupt):
        client.download(DIGEST, size=len(OBJECT))
    assert not (tmp_path / "objects").exists()


def test_the_cache_forgets_the_oldest(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit=2_500)
    bodies = [bytes([i]) * 1000 for i in range(3)]
    digests = ["sha256:" + hashlib.sha256(b).hexdigest() for b in bodies]
    for digest, body in zip(digests, bodies, strict=True):
        cache.put(digest, body)
    assert [cache.get(d) is not None for d in digests] == [False, True, True]


def test_stamina_is_active_in_these_tests() -> None:
    assert stamina.is_active()


def test_a_disk_without_room_for_the_cache_costs_a_download_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    body = b"frame"
    digest = digest_of_bytes(body)
    cache = ObjectCache(tmp_path / "objects")
    client = connect(lambda _: httpx.Response(200, content=body), cache=cache)
    with monkeypatch.context() as disk:
        disk.setattr(Path, "replace", full)
        assert client.download(digest) == body
        assert cache.get(digest) is None
        assert list((tmp_path / "objects").iterdir()) == []
    assert client.download(digest) == body
    assert cache.get(digest) == body
