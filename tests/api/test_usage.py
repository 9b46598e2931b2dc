"""Fair use: quotas that replicas share, places that are given back, refusals that say when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.app import create_app
from api.usage import repository
from api.usage.service import Answers
from core.synthesis.request import MAX_ROWS
from tests.api.support import Coordinator, problem

BODY = {"run": "run-1", "n": 10, "seed": 1}


async def published(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    run = await coordinator.run("site-a", privacy={"rounds": 0}, round={"quorum": 1})
    await coordinator.finish(run, "site-a")


def limited(coordinator: Coordinator, **limits: int) -> None:
    settings = coordinator.ctx.settings.model_copy(
        update={f"synthesis_{name}": value for name, value in limits.items()}
    )
    coordinator.ctx = replace(coordinator.ctx, settings=settings)
    coordinator.app.state.context = coordinator.ctx
    coordinator.app.state.answers = Answers(settings)


async def ask(coordinator: Coordinator, who: str = "scientist", **asked: Any) -> httpx.Response:
    return await coordinator.call("POST", "/synthesize", who, json=BODY | asked)


async def test_good_answers_say_what_is_left(coordinator: Coordinator) -> None:
    await published(coordinator)
    limited(coordinator, requests_per_minute=5, rows_per_day=1_000)
    first, second = await ask(coordinator), await ask(coordinator, n=90)
    assert first.headers["RateLimit-Policy"] == '"requests";q=5;w=60, "rows";q=1000;w=86400'
    assert first.headers["RateLimit"] == '"requests";r=4, "rows";r=990'
    assert second.headers["RateLimit"] == '"requests";r=3, "rows";r=900'
    own = await coordinator.ok("GET", "/v1/usage", "scientist")
    assert (own["requests_this_minute"], own["rows_today"]) == (2, 100)
    assert (own["requests_per_minute"], own["rows_per_day"]) == (5, 1_000)
    unused = await coordinator.ok("GET", "/v1/usage", "admin")
    assert (unused["requests_this_minute"], unused["rows_today"]) == (0, 0)
    assert (await ask(coordinator, "admin")).headers["RateLimit"] == '"requests";r=4, "rows";r=990'
    listed = await coordinator.ok("GET", "/v1/usage/tokens", "auditor")
    assert sorted((item["scope"], item["rows_today"]) for item in listed["items"]) == [
        ("admin", 10), ("scientist", 100),
    ]  # fmt: skip
    page = await coordinator.ok("GET", "/v1/usage/tokens?limit=1", "auditor")
    rest = await coordinator.ok("GET", f"/v1/usage/tokens?after={page['next']}", "auditor")
    assert page["items"] + rest["items"] == listed["items"]
    assert rest["next"] is None
    problem(await coordinator.call("GET", "/v1/usage/tokens", "scientist"), 403, "forbidden")


async def test_too_many_requests_wait_for_the_next_minute(coordinator: Coordinator) -> None:
    await published(coordinator)
    limited(coordinator, requests_per_minute=2)
    assert [(await ask(coordinator)).status_code for _ in range(2)] == [200, 200]
    refused = await ask(coordinator)
    body = problem(refused, 429, "quota-exceeded")
    seconds = int(refused.headers["Retry-After"])
    assert 1 <= seconds <= 60
    assert (body["quota"], body["retry_after_s"]) == ("requests-per-minute", seconds)
    assert (await ask(coordinator, "admin")).status_code == 200  # each token has its own
    coordinator.pass_time(seconds)
    assert (await ask(coordinator)).status_code == 200


async def test_rows_of_a_day_are_counted_before_they_are_made(coordinator: Coordinator) -> None:
    await published(coordinator)
    limited(coordinator, rows_per_day=25)
    assert (await ask(coordinator)).status_code == 200
    refused = await ask(coordinator, n=16)
    body = problem(refused, 429, "quota-exceeded", "n")
    assert body["quota"] == "rows-per-day"
    assert 1 <= int(refused.headers["Retry-After"]) <= 86_400
    assert (await ask(coordinator, n=15)).status_code == 200  # the refused one cost nothing
    used = await coordinator.ok("GET", "/v1/usage", "scientist")
    assert (used["rows_today"], used["requests_this_minute"]) == (25, 2)
    coordinator.pass_time(int(refused.headers["Retry-After"]))
    assert (await ask(coordinator, n=25)).status_code == 200


@pytest.mark.parametrize("limits", [{"max_rows": 9}, {"rows_per_day": 9}])
async def test_what_no_waiting_makes_possible_is_no_429(
    coordinator: Coordinator, limits: dict[str, int]
) -> None:
    await published(coordinator)
    limited(coordinator, **limits)
    problem(await ask(coordinator), 422, "invalid-synthesis-request", "n")
    counts = {"run": "run-1", "class_counts": {"a": 10}}
    answer = await coordinator.call("POST", "/synthesize", "scientist", json=counts)
    problem(answer, 422, "invalid-synthesis-request", "class_counts")


async def test_wrong_requests_and_known_answers_cost_nothing(coordinator: Coordinator) -> None:
    await published(coordinator)
    path = "/v1/synthesize?run=run-1&n=10&seed=1"
    answer = await coordinator.call("GET", path, "scientist")
    etag = {"If-None-Match": answer.headers["ETag"]}
    assert (await coordinator.call("GET", path, "scientist", headers=etag)).status_code == 304
    for wrong in ({"run": "nothing"}, {"mixture": {"nobody": 1}}, {"labels": {"z": 1}}, {"n": 0}):
        assert (await ask(coordinator, **wrong)).status_code in (404, 422)
    used = await coordinator.ok("GET", "/v1/usage", "scientist")
    assert (used["requests_this_minute"], used["rows_today"]) == (1, 10)


async def test_no_race_passes_a_limit_on_two_replicas(coordinator: Coordinator) -> None:
    await published(coordinator)
    limited(coordinator, requests_per_minute=7, at_once_per_token=50, at_once=50)
    other = create_app(coordinator.ctx.settings, background=False)
    token = await coordinator.token("scientist")
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        other.router.lifespan_context(other),
        httpx.AsyncClient(transport=httpx.ASGITransport(other), base_url="http://other") as second,
    ):
        both = (coordinator.http, second)
        found = await asyncio.gather(
            *(
                both[place % 2].post("/synthesize", json=BODY, headers=headers)
                for place in range(20)
            )
        )
    assert sorted(answer.status_code for answer in found) == [200] * 7 + [429] * 13


async def test_a_charge_that_runs_again_counts_once(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await coordinator.enrol("site-a")
    token_id = uuid4()
    await coordinator.sql(
        "INSERT INTO tokens (id, scope, label, mac) VALUES (:id, 'scientist', 'x', '\\x00')",
        id=token_id,
    )
    same = uuid4()
    monkeypatch.setattr(repository, "uuid7", lambda: same)
    for _ in range(2):
        charged = await repository.charge(
            coordinator.ctx.database, token_id, 5, requests_limit=1, rows_limit=5
        )
        assert charged == (1, 5)
    monkeypatch.setattr(repository, "uuid7", uuid4)
    charged = await repository.charge(
        coordinator.ctx.database, token_id, 1, requests_limit=1, rows_limit=50
    )
    assert charged is None


async def test_places_are_few_and_given_back(coordinator: Coordinator) -> None:
    await published(coordinator)
    limited(coordinator, at_once_per_token=1, at_once=2)
    answers: Answers = coordinator.app.state.answers
    who, others = uuid4(), (uuid4(), uuid4())
    with answers.place(who):
        with pytest.raises(Exception, match="to this token are being made"), answers.place(who):
            pass
        with (
            answers.place(others[0]),
            pytest.raises(Exception, match="makes 2 answers already"),
            answers.place(others[1]),
        ):
            pass
        with answers.place(others[0]):
            refused = await ask(coordinator)
            assert refused.headers["Retry-After"] == "2"
            problem(refused, 429, "too-many-answers")
    for n in (10, 9_000):
        for _ in range(3):
            assert (await ask(coordinator, n=n, format="arrow")).status_code == 200
    used = await coordinator.ok("GET", "/v1/usage", "scientist")
    assert used["requests_this_minute"] == 6  # the refused one cost nothing


def test_the_largest_request_is_allowed_by_default(coordinator: Coordinator) -> None:
    settings = coordinator.ctx.settings
    assert settings.synthesis_max_rows == MAX_ROWS <= settings.synthesis_rows_per_day
