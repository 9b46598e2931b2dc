"""What time does to a round: leases, deadlines, quorum, budgets, restarts, several replicas."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Context
from api.db import outbox
from api.rounds import driver
from api.sweeper import Leader, Sweeper
from core.wire.messages import LEASE_HEADER
from tests.api.support import Coordinator, a_plan, problem


async def test_a_round_says_whom_it_waits_for(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b", "site-c")
    run = await coordinator.run("site-a", "site-b", "site-c")
    await coordinator.work("site-a")
    await coordinator.poll("site-b")
    await coordinator.sweep()
    shown = await coordinator.round(run, 0)
    assert shown["state"] == "open"
    assert (shown["updates_accepted"], shown["missing_clients"]) == (1, ["site-b", "site-c"])
    assert shown["why"].startswith("1 of 3 updates, quorum 2; working: site-b; not yet claimed")
    assert shown["deadline"] is not None


async def test_a_deadline_with_quorum_closes_and_the_absent_pay(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b", "site-c")
    run = await coordinator.run("site-a", "site-b", "site-c")
    await coordinator.work("site-a")
    await coordinator.work("site-b")
    absent = await coordinator.poll("site-c")
    assert absent is not None
    # The lease of 10 s ends first, is issued again, and the deadline comes before it is used.
    coordinator.pass_time(101)
    await coordinator.sweep()
    shown = await coordinator.round(run, 0)
    assert shown["state"] == "aggregating"
    assert "lost" in await coordinator.kinds("site-c")
    late = await coordinator.send(absent)
    problem(late, 409, "round-closed")
    await coordinator.aggregate()
    assert (await coordinator.round(run, 0))["missing_clients"] == ["site-c"]
    ledger = await coordinator.ledger("site-c")
    assert ledger["epsilon_committed"] == ledger["epsilon_total"] > 0


async def test_below_quorum_extends_once_then_fails(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", round={"extension_s": 50.0})
    await coordinator.work("site-a")
    coordinator.pass_time(101)
    await coordinator.sweep()
    shown = await coordinator.round(run, 0)
    assert (shown["state"], shown["extended"]) == ("open", True)
    coordinator.pass_time(51)
    await coordinator.sweep()
    ended = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert ended["state"] == "failed"
    assert "1 of 2 updates needed" in ended["why"]
    assert "missing: site-b" in ended["why"]
    assert await coordinator.kinds("site-a") == ["reserve", "commit"]
    problem(await coordinator.call("POST", f"/v1/runs/{run['id']}/start"), 409, "conflict")


async def test_after_a_start_nobody_is_late_until_the_grace_has_passed(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", round={"lease_s": 300.0})
    first, _ = await coordinator.poll("site-a"), await coordinator.poll("site-b")
    assert first is not None
    coordinator.pass_time(10_000)  # the coordinator was down
    graced = coordinator.ctx.settings.model_copy(update={"grace_s": 5.0})
    object.__setattr__(coordinator.ctx, "settings", graced)
    restarted = Sweeper(coordinator.ctx)
    await restarted.sweep()
    assert (await coordinator.round(run, 0))["state"] == "open"
    # A site that kept working reaches it again and renews: its work is not lost.
    renewal = {"headers": {LEASE_HEADER: first["lease_token"]}}
    await coordinator.ok("POST", f"/v1/work/{first['work_id']}/renew", "site-a", **renewal)
    assert (await coordinator.send(first)).status_code == 201
    coordinator.pass_time(6)
    await restarted.sweep()
    assert await coordinator.kinds("site-b") == ["reserve", "lost"]


async def test_a_client_without_budget_is_left_out_with_the_reason(
    coordinator: Coordinator,
) -> None:
    """Two clients over one population share an account: what one spends, the other has not."""
    shared = {"site": "hospital", "population": "all"}
    await coordinator.enrol("site-a", epsilon=8.0, **shared)
    await coordinator.enrol("site-b", epsilon=4.0, **shared)
    await coordinator.enrol("site-c")
    run = await coordinator.run("site-b", "site-c", name="run-2", start=False, round={"quorum": 1})
    # The other run's sketch is reserved on the shared account before this one starts.
    await coordinator.run("site-a", "site-c", privacy={"rounds": 0})
    await coordinator.ok("POST", f"/v1/runs/{run['id']}/start")
    await coordinator.sweep()
    shown = await coordinator.round(run, 0)
    out = {item["client"]: item for item in shown["clients"]}["site-b"]
    assert out["standing"] == "out"
    assert "more than its budget of 4" in out["why"]
    assert await coordinator.poll("site-b") is None


async def test_creating_a_run_counts_what_the_account_has_spent(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", epsilon=5.0)
    run = await coordinator.run("site-a", round={"quorum": 1})
    await coordinator.finish(run, "site-a")
    body = {"plan": a_plan("again", round={"quorum": 1}), "clients": ["site-a"]}
    refused = await coordinator.call("POST", "/v1/runs", json=body)
    found = problem(refused, 409, "budget-exceeded", "clients.0")
    assert found["epsilon_after"] > found["epsilon_budget"] == 5.0


async def test_a_step_that_dies_is_taken_again(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the driver after every statement in turn: the round opens once, with one reservation."""
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", start=False)
    await coordinator.ok("POST", f"/v1/runs/{run['id']}/start")
    real, died = AsyncSession.execute, 0
    while (await coordinator.round(run, 0))["state"] == "draft":
        left = died

        async def dying(session: AsyncSession, *args: Any, **options: Any) -> Any:
            nonlocal left
            result = await real(session, *args, **options)
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return result

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(AsyncSession, "execute", dying)
            await coordinator.sweep()
        if (await coordinator.round(run, 0))["state"] == "draft":
            assert await coordinator.kinds("site-a") == []
        died += 1
    assert died > 10
    assert (await coordinator.round(run, 0))["state"] == "open"
    assert await coordinator.kinds("site-a") == ["reserve"]
    ended = await coordinator.finish(run, "site-a", "site-b")
    assert ended["state"] == "completed"
    assert await coordinator.kinds("site-a") == ["reserve", "commit"] * 2


async def test_an_error_in_one_run_does_not_hold_up_the_others(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await coordinator.enrol("site-a", "site-b")
    bad = await coordinator.run("site-a", start=False, round={"quorum": 1})
    good = await coordinator.run("site-b", start=False, name="run-2", round={"quorum": 1})
    for run in (bad, good):
        await coordinator.ok("POST", f"/v1/runs/{run['id']}/start")
    real, calls = driver.step, []

    async def failing(ctx: Context, run_id: UUID, grace: datetime | None = None) -> bool:
        if str(run_id) == bad["id"]:
            calls.append(run_id)
            raise RuntimeError("a bug")
        return await real(ctx, run_id, grace)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "step", failing)
        await coordinator.sweep()
        await coordinator.sweep()
    assert len(calls) == 1
    assert (await coordinator.round(good, 0))["state"] == "open"
    coordinator.pass_time(3)
    await coordinator.sweep()
    assert (await coordinator.round(bad, 0))["state"] == "open"


async def test_several_sweepers_at_once_do_no_harm(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", start=False)
    await coordinator.ok("POST", f"/v1/runs/{run['id']}/start")
    others = [Sweeper(coordinator.ctx) for _ in range(3)]
    await asyncio.gather(*(one.sweep() for one in others))
    assert await coordinator.kinds("site-a") == ["reserve"]
    for name in ("site-a", "site-b"):
        await coordinator.work(name)
    await asyncio.gather(*(one.sweep() for one in others))
    assert (await coordinator.round(run, 0))["state"] == "aggregating"
    assert len(await coordinator.messages()) == 1


async def test_only_one_replica_leads(coordinator: Coordinator) -> None:
    first, second = Leader(coordinator.ctx), Leader(coordinator.ctx)
    assert await first.holds()
    assert not await second.holds()
    assert await first.holds()
    await first.release()
    assert await second.holds()
    await second.release()


async def test_an_operator_stops_a_run(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    for _ in range(2):
        stopped = await coordinator.ok("POST", f"/v1/runs/{run['id']}/cancel")
        assert (stopped["state"], "operator" in stopped["why"]) == ("cancelled", True)
    assert (await coordinator.round(run, 0))["state"] == "abandoned"
    problem(await coordinator.send(order), 409, "round-closed")
    assert await coordinator.kinds("site-a") == ["reserve", "lost"]
    assert await coordinator.poll("site-b") is None
    draft = await coordinator.run("site-a", "site-b", name="run-2", start=False)
    ended = await coordinator.ok("POST", f"/v1/runs/{draft['id']}/cancel")
    assert ended["state"] == "cancelled"


async def test_unclaimed_work_is_announced_again_and_later_each_time(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-m", managed=True)
    await coordinator.run("site-m", round={"quorum": 1, "deadline_s": 10_000.0})
    (first,) = await coordinator.messages("fhv.train")
    assert (first.task, first.queue) == ("fhv.train", "train")
    coordinator.pass_time(11)
    await coordinator.sweep()
    assert len(await coordinator.messages("fhv.train")) == 1  # the first is still to be sent
    await coordinator.sql("UPDATE outbox SET sent_at = now()")
    await coordinator.sweep()
    assert len(await coordinator.messages("fhv.train")) == 2
    await coordinator.sql("UPDATE outbox SET sent_at = now()")
    coordinator.pass_time(11)  # the pause is 20 s by now
    await coordinator.sweep()
    assert len(await coordinator.messages("fhv.train")) == 2
    coordinator.pass_time(10)
    await coordinator.sweep()
    assert len(await coordinator.messages("fhv.train")) == 3
    assert {message.subject for message in await coordinator.messages("fhv.train")} == {
        first.subject
    }
    await coordinator.ok("POST", f"/v1/work/{first.subject}/claim", "worker")
    async with coordinator.ctx.database.write() as session:
        await coordinator.sql("UPDATE outbox SET sent_at = now()")
        now = await coordinator.ctx.database.now(session)
        assert await outbox.announce_again(session, now, 0.0) == 0
