"""The coordinator's jobs under leases, and the messages that announce work."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest
import redis

from api.db.outbox import Dispatcher
from api.db.oversight_models import Consent
from api.db.run_models import Job, OutboxMessage
from core.wire.messages import LEASE_HEADER, AggregateJob
from tests.api.support import Coordinator, problem


@pytest.fixture
async def run(coordinator: Coordinator) -> dict:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    for name in ("site-b", "site-a"):
        await coordinator.work(name)
    await coordinator.sweep()
    return run


async def _claim(coordinator: Coordinator) -> tuple[str, dict, dict]:
    (job,) = await coordinator.rows(Job, Job.state == "ready")
    claimed = await coordinator.ok("POST", f"/v1/jobs/{job.id}/claim", "worker")
    return f"/v1/jobs/{job.id}", claimed, {LEASE_HEADER: claimed["lease_token"]}


async def test_a_job_says_what_to_sum_in_a_fixed_order(coordinator: Coordinator, run: dict) -> None:
    path, claimed, _ = await _claim(coordinator)
    assert [item["client"] for item in claimed["updates"]] == ["site-a", "site-b"]
    assert (claimed["kind"], claimed["frame"], claimed["optimiser"]) == ("sketch", None, None)
    problem(await coordinator.call("POST", f"{path}/claim", "worker"), 409, "work-leased")
    assert "sums the updates" not in (await coordinator.round(run, 0))["why"]
    await coordinator.sweep()
    assert "sums the updates (attempt 1)" in (await coordinator.round(run, 0))["why"]


async def test_completing_is_idempotent_for_the_same_result(
    coordinator: Coordinator, run: dict
) -> None:
    path, claimed, lease = await _claim(coordinator)
    result = coordinator.sum(AggregateJob.model_validate(claimed))
    absent = {**result, "optimiser_digest": "sha256:" + "9" * 64}
    refused = await coordinator.call(
        "POST", f"{path}/complete", "worker", json=absent, headers=lease
    )
    problem(refused, 422, "invalid-request", "optimiser_digest")
    for _ in range(2):
        done = await coordinator.call(
            "POST", f"{path}/complete", "worker", json=result, headers=lease
        )
        assert done.status_code == 204
    await coordinator.sweep()
    again = await coordinator.call("POST", f"{path}/complete", "worker", json=result, headers=lease)
    assert again.status_code == 204
    other = {**result, "optimiser_size": result["optimiser_size"] + 1}
    refused = await coordinator.call(
        "POST", f"{path}/complete", "worker", json=other, headers=lease
    )
    problem(refused, 409, "conflict")
    problem(await coordinator.call("POST", f"{path}/claim", "worker"), 409, "work-gone")
    assert (await coordinator.round(run, 0))["state"] == "published"
    assert (await coordinator.round(run, 1))["state"] == "open"


async def test_a_silent_worker_loses_the_job_and_another_takes_it(
    coordinator: Coordinator, run: dict
) -> None:
    path, claimed, lease = await _claim(coordinator)
    for _ in range(2):
        coordinator.pass_time(100)
        await coordinator.ok("POST", f"{path}/renew", "worker", headers=lease)
        await coordinator.sweep()
    coordinator.pass_time(121)
    await coordinator.sweep()
    problem(
        await coordinator.call("POST", f"{path}/renew", "worker", headers=lease), 409, "lease-lost"
    )
    coordinator.pass_time(3)
    await coordinator.sql("UPDATE outbox SET sent_at = now()")
    await coordinator.sweep()
    assert len(await coordinator.rows(OutboxMessage)) == 2
    _, second, new_lease = await _claim(coordinator)
    assert second["lease_token"] != claimed["lease_token"]
    result = coordinator.sum(AggregateJob.model_validate(second))
    stale = await coordinator.call("POST", f"{path}/complete", "worker", json=result, headers=lease)
    problem(stale, 409, "lease-lost")
    await coordinator.ok("POST", f"{path}/complete", "worker", json=result, headers=new_lease)


async def test_a_job_that_keeps_failing_fails_its_run(coordinator: Coordinator, run: dict) -> None:
    for attempt in range(1, 6):
        path, _, lease = await _claim(coordinator)
        failed = await coordinator.call(
            "POST",
            f"{path}/fail",
            "worker",
            json={"code": "object-missing", "detail": "gone"},
            headers=lease,
        )
        assert failed.status_code == 204
        coordinator.pass_time(61)
        await coordinator.sweep()
        if attempt < 5:
            assert "after object-missing: gone" in (await coordinator.round(run, 0))["why"]
    ended = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert ended["state"] == "failed"
    assert "object-missing: gone" in ended["why"]
    missing = await coordinator.call("POST", f"{path}/renew", "worker")
    problem(missing, 422, "invalid-request", LEASE_HEADER)


async def test_messages_are_celery_messages_with_one_id(
    coordinator: Coordinator, broker_url: str
) -> None:
    await coordinator.enrol("site-m", managed=True)
    await coordinator.run("site-m", round={"quorum": 1})
    (work,) = await coordinator.managed_work("site-m")
    ctx = coordinator.ctx
    dispatcher = Dispatcher(ctx.database, ctx.hub, broker_url, 1.0)
    try:
        assert await dispatcher.reachable()
        assert await dispatcher.dispatch() == 2
        assert await dispatcher.dispatch() == 0
    finally:
        dispatcher.close()
    client = redis.Redis.from_url(broker_url)
    sent = [json.loads(client.rpop("train")) for _ in range(2)]  # type: ignore[arg-type]
    client.close()
    (consent,) = await coordinator.rows(Consent)
    for message, task, row in zip(sent, ("fhv.consent", "fhv.train"), (consent, work), strict=True):
        assert message["headers"]["task"] == task
        assert message["content-type"] == "application/json"
        arguments, _, _ = json.loads(base64.b64decode(message["body"]))
        assert arguments == [str(row.id)]
    rows = await coordinator.messages()
    assert len(rows) == 2
    assert all(row.sent_at is not None for row in rows)


async def test_messages_wait_for_a_broker_that_is_away(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    await coordinator.enrol("site-m", managed=True)
    await coordinator.run("site-m", round={"quorum": 1})
    ctx = coordinator.ctx
    away = Dispatcher(ctx.database, ctx.hub, "redis://127.0.0.1:1/0", 0.1)
    try:
        assert not await away.reachable()
        running = asyncio.create_task(away.run())
        await asyncio.sleep(1.0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        away.close()
    (message,) = await coordinator.messages("fhv.train")
    assert message.sent_at is None
