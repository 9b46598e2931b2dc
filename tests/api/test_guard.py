"""Guessing: what an address may try, and who is not held up by it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.app import create_app
from api.config import Settings
from api.guard import Guard
from api.problems import TooManyFailures
from core.wire.credentials import new_code, new_token
from tests.api.support import SPACE, Coordinator, problem

LIMIT = 5


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def guess(guard: Guard, address: str, mac: bytes = b"wrong") -> bool:
    """Was it looked at?"""
    try:
        guard.admit(address, mac)
    except TooManyFailures:
        return False
    guard.failed(address, mac)
    return True


def test_a_bucket_empties_and_fills() -> None:
    clock = Clock()
    guard = Guard(LIMIT, clock)
    assert [guess(guard, "192.0.2.1") for _ in range(LIMIT + 2)] == [True] * LIMIT + [False] * 2
    assert guess(guard, "192.0.2.2"), "another address has its own"
    clock.now += 60 / LIMIT
    assert [guess(guard, "192.0.2.1") for _ in range(2)] == [True, False]
    clock.now += 3_600
    assert sum(guess(guard, "192.0.2.1") for _ in range(50)) == LIMIT, "no more than full"


@given(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=200))
def test_no_pattern_of_guesses_gets_more_than_the_rate(pauses: list[float]) -> None:
    clock = Clock()
    guard = Guard(LIMIT, clock)
    looked_at = 0
    for pause in pauses:
        clock.now += pause
        looked_at += guess(guard, "192.0.2.1")
    assert looked_at <= LIMIT + clock.now * LIMIT / 60 + 1e-6


def test_what_was_valid_lately_is_heard() -> None:
    guard = Guard(LIMIT, Clock())
    guard.accepted(b"good")
    while guess(guard, "192.0.2.1"):
        pass
    guard.admit("192.0.2.1", b"good")
    with pytest.raises(TooManyFailures):
        guard.admit("192.0.2.1", b"also good, but not known here yet")
    guard.failed("192.0.2.1", b"good")  # it was revoked
    with pytest.raises(TooManyFailures):
        guard.admit("192.0.2.1", b"good")


def test_a_network_of_ipv6_addresses_is_one_address() -> None:
    guard = Guard(LIMIT, Clock())
    tried = [guess(guard, f"2001:db8:0:1::{number:x}") for number in range(LIMIT + 3)]
    assert tried.count(True) == LIMIT
    assert guess(guard, "2001:db8:0:2::1")
    assert [guess(guard, "::ffff:192.0.2.9") for _ in range(LIMIT)] == [True] * LIMIT
    assert not guess(guard, "::ffff:192.0.2.9")
    assert guess(guard, "::ffff:192.0.2.8")


def test_a_guess_from_everywhere_takes_no_memory() -> None:
    guard = Guard(LIMIT, Clock())
    for number in range(30_000):
        guess(guard, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(guard._buckets) <= 10_000


@pytest.fixture
async def strict(settings: Settings) -> AsyncIterator[Coordinator]:
    app = create_app(settings.model_copy(update={"failures_per_minute": LIMIT}), background=False)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=("198.51.100.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://api.test") as http:
            yield Coordinator(app, http)


async def test_tokens_that_nobody_has(strict: Coordinator) -> None:
    await strict.ok("GET", "/v1/spaces")  # the administrator's token was valid lately
    for number in range(LIMIT + 3):
        strict.tokens["guess"] = new_token("admin")
        answer = await strict.call("GET", "/v1/clients", "guess")
        if number < LIMIT:
            problem(answer, 401, "unauthenticated")
        else:
            found = problem(answer, 429, "too-many-failures")
            assert 1 <= int(answer.headers["Retry-After"]) == found["retry_after_s"] <= 60
    await strict.ok("GET", "/v1/spaces")
    metrics = (await strict.call("GET", "/metrics")).text
    assert f'fhv_auth_failures_total{{reason="unknown"}} {LIMIT}.0' in metrics
    assert 'fhv_auth_failures_total{reason="throttled"} 3.0' in metrics


async def test_codes_that_nobody_has(strict: Coordinator) -> None:
    await strict.ok("POST", "/v1/spaces", json=SPACE)
    for number in range(LIMIT + 1):
        answer = await strict.call("POST", "/v1/enrolments/redeem", None, json={"code": new_code()})
        if number < LIMIT:
            problem(answer, 404, "enrolment-code-unknown", "code")
        else:
            problem(answer, 429, "too-many-failures")
    typo = await strict.call("POST", "/v1/enrolments/redeem", None, json={"code": "ABC"})
    problem(typo, 404, "enrolment-code-unknown", "code")  # says why, and costs nothing


async def test_a_revoked_token_is_no_longer_heard(strict: Coordinator) -> None:
    made = await strict.ok("POST", "/v1/tokens", json={"scope": "scientist", "label": "x"})
    strict.tokens["ada"] = made["token"]
    await strict.ok("GET", "/v1/runs", "ada")
    await strict.ok("POST", f"/v1/tokens/{made['id']}/revoke")
    for _ in range(LIMIT):
        problem(await strict.call("GET", "/v1/runs", "ada"), 401, "unauthenticated")
    problem(await strict.call("GET", "/v1/runs", "ada"), 429, "too-many-failures")
