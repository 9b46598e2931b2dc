"""Updates that are not what they say, sent to the real coordinator: each a clear 4xx, nothing
stored, little memory and time.
"""

from __future__ import annotations

import gzip
import resource
import time
from typing import Any

import pytest

from core.federation.plan import RunSpec
from core.storage import sha256_of
from tests.api.support import Coordinator, problem, update_body
from tests.core.malformed import MALFORMED, mutants

_MIB = 2**20
_MUTANTS = 150


@pytest.fixture
async def order(coordinator: Coordinator) -> dict[str, Any]:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    return order


def _good(order: dict[str, Any], seed: int = 1) -> bytes:
    return update_body(RunSpec.model_validate(order["spec"]), 0, seed)


def _stored(coordinator: Coordinator) -> list[str]:
    folder = coordinator.ctx.store._folder
    assert folder is not None
    return [str(path) for path in folder.rglob("*") if path.is_file()]


async def _nothing_came_of_it(coordinator: Coordinator) -> None:
    assert await coordinator.sql("SELECT 1 FROM updates") == []
    assert await coordinator.sql("SELECT 1 FROM objects") == []
    assert _stored(coordinator) == []
    assert await coordinator.kinds("site-a") == ["reserve"]
    (work,) = await coordinator.managed_work("site-a")
    assert work.state == "leased"


async def test_malformed_files_are_refused_and_leave_nothing(
    coordinator: Coordinator, order: dict[str, Any]
) -> None:
    good = _good(order)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for name, spoil in MALFORMED.items():
        answer = await coordinator.send(order, spoil(good))
        body = answer.json()
        assert answer.status_code in (413, 422), name
        assert body["code"] in ("payload-too-large", "update-unreadable") or body[
            "code"
        ].startswith("update-wrong-"), (name, body)
        assert body["detail"], name
        await _nothing_came_of_it(coordinator)
    assert time.monotonic() - started < 30
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 64 * _MIB
    # Refused bytes are told of, never kept; and the right ones still count.
    told = await coordinator.ok("GET", f"/v1/runs/{order['run_id']}/rejections", "auditor")
    assert told["items"]
    assert not any(one["quarantined"] for one in told["items"])
    assert (await coordinator.send(order, good)).status_code == 201


async def test_files_near_a_good_one_count_or_leave_nothing(
    coordinator: Coordinator, order: dict[str, Any]
) -> None:
    """Until one passes: from then on it counts, and every other one is a conflict."""
    counted: str | None = None
    for seed, body in enumerate(mutants(_good(order), _MUTANTS, seed=20)):
        answer = await coordinator.send(order, body)
        status, code = answer.status_code, answer.json().get("code", "")
        if answer.is_success:
            assert counted in (None, sha256_of(body)), seed
            counted = sha256_of(body)
        elif status == 422:
            assert code.startswith("update-"), seed
            assert not coordinator.ctx.store.exists(sha256_of(body)), seed
        else:
            assert (status, code) in (
                (409, "update-conflict"),
                (409, "lease-lost"),  # an implausible one has put its client into quarantine
                (413, "payload-too-large"),
            ), seed
    assert len(_stored(coordinator)) == (counted is not None)


async def test_a_compressed_bomb_is_not_unpacked(
    coordinator: Coordinator, order: dict[str, Any]
) -> None:
    bomb = gzip.compress(bytes(64 * _MIB), 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for coding in ("gzip", "zstd", "br", "deflate", "gzip, identity", "x-unknown"):
        answer = await coordinator.send(order, bomb, **{"Content-Encoding": coding})
        problem(answer, 415, "unsupported-media-type", "Content-Encoding")
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        answer = await coordinator.call("POST", "/v1/spaces", content=bomb, headers=headers)
        problem(answer, 415, "unsupported-media-type", "Content-Encoding")
    # Without the header it is bytes like others.
    answer = await coordinator.send(order, bomb)
    assert answer.status_code in (413, 422)
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 32 * _MIB
    await _nothing_came_of_it(coordinator)
