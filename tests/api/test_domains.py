"""Domains: labels that mixtures may name in place of their clients."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.support import Coordinator, problem

NAMES = ("site-a", "site-b", "site-c")


@pytest.fixture
async def run(coordinator: Coordinator) -> dict[str, Any]:
    await coordinator.enrol("site-a", "site-b", domain="north")
    await coordinator.enrol("site-c", domain="south")
    run = await coordinator.run(*NAMES, privacy={"rounds": 0})
    await coordinator.finish(run, *NAMES)
    return run


async def rows(coordinator: Coordinator, mixture: dict[str, float], **asked: Any) -> Any:
    body = {"run": "run-1", "mixture": mixture, "n": 40, "seed": 7, **asked}
    return await coordinator.ok("POST", "/synthesize", "scientist", json=body)


async def test_a_domain_stands_for_its_clients_in_equal_parts(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model", "scientist")
    assert model["domains"] == {"north": ["site-a", "site-b"], "south": ["site-c"]}
    found = await rows(coordinator, {"north": 3, "south": 1})
    assert found["receipt"]["receipt"]["asked"]["mixture"] == {
        "site-a": 0.375, "site-b": 0.375, "site-c": 0.25,
    }  # fmt: skip
    named = await rows(coordinator, {"site-a": 0.375, "site-b": 0.375, "site-c": 0.25})
    assert named == found
    both = await rows(coordinator, {"north": 1, "site-a": 1}, mode="sample", columns=["domain"])
    assert both["receipt"]["receipt"]["asked"]["mixture"] == {"site-a": 0.75, "site-b": 0.25}
    assert set(both["domains"]) == {"site-a", "site-b"}


async def test_who_has_withdrawn_is_in_no_domain(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    for name in ("site-a", "site-c"):
        path = f"/v1/clients/{coordinator.clients[name]}/revoke"
        await coordinator.ok("POST", path, json={"why": "asked to"})
    found = await rows(coordinator, {"north": 1})
    assert found["receipt"]["receipt"]["asked"]["mixture"] == {"site-b": 1.0}
    for mixture in ({"south": 1.0}, {"south": 0.0, "north": 1.0}):
        answer = await coordinator.call(
            "POST", "/synthesize", "scientist", json={"run": "run-1", "n": 1, "mixture": mixture}
        )
        problem(answer, 410, "client-withdrawn", "mixture.south")
    unknown = await coordinator.call(
        "POST", "/synthesize", "scientist", json={"run": "run-1", "n": 1, "mixture": {"east": 1}}
    )
    problem(unknown, 422, "unknown-mixture-client", "mixture.east")


async def test_labels_and_names_are_told_apart(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", domain="north")
    body = {
        "space": "tiny", "site": "h", "population": "p", "unit": "record", "managed": True,
        "budget": {"epsilon": 1.0, "delta": 1e-5},
    }  # fmt: skip
    for name, domain, field in (
        ("north", None, "name"), ("site-b", "site-a", "domain"), ("same", "same", "name"),
    ):  # fmt: skip
        answer = await coordinator.call(
            "POST", "/v1/clients", json=body | {"name": name, "domain": domain}
        )
        problem(answer, 409, "client-name-taken", field)
    answers = await asyncio.gather(
        coordinator.call("POST", "/v1/clients", json=body | {"name": "x", "domain": "y"}),
        coordinator.call("POST", "/v1/clients", json=body | {"name": "y", "domain": None}),
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409]
