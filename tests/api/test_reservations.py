"""Reservations under a budget: exact to the last event, and cheap for the rounds of a run."""

from __future__ import annotations

from core.privacy import accounting
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.wire.messages import LEASE_HEADER
from tests.api.support import Coordinator

DELTA = 1e-5


async def charged(coordinator: Coordinator, name: str) -> list[PrivacyEvent]:
    entries = (await coordinator.ledger(name))["entries"]
    return [PrivacyEvent.model_validate(e["event"]) for e in entries if e["kind"] == "reserve"]


async def test_all_rounds_of_a_run_cost_one_evaluation(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b", epsilon=4.0)  # exactly what the plan may spend
    run = await coordinator.run("site-a", "site-b", start=False, privacy={"rounds": 6})
    accounting._epsilon.cache_clear()
    await coordinator.ok("POST", f"/v1/runs/{run['id']}/start")
    await coordinator.sweep()
    done = await coordinator.finish(run, "site-a", "site-b")
    assert done["state"] == "completed"
    assert accounting._epsilon.cache_info().misses <= 1  # of 14 reservations
    assert epsilon(await charged(coordinator, "site-a"), DELTA) <= 4.0


async def test_lost_attempts_end_where_the_recomputed_epsilon_passes_the_budget(
    coordinator: Coordinator,
) -> None:
    """A site gives work back again and again. What was reserved fits the budget, exactly as the
    slow reference says, and the attempt that was refused would not have."""
    await coordinator.enrol("site-a", "site-b", epsilon=6.0)
    await coordinator.run(
        "site-a",
        "site-b",
        privacy={"rounds": 3},
        round={"quorum": 2, "max_attempts": 100, "deadline_s": 1e6},
    )
    for _ in range(60):
        order = await coordinator.poll("site-a")
        if order is None:
            break
        await coordinator.ok(
            "POST",
            f"/v1/work/{order['work_id']}/fail",
            "site-a",
            json={"code": "site-not-ready"},
            headers={LEASE_HEADER: order["lease_token"]},
        )
        await coordinator.sweep()
        coordinator.pass_time(301)  # the longest pause before who was not ready is asked again
    spent = await charged(coordinator, "site-a")
    refused = spent[0]  # all attempts of round 0 are the same sketch
    assert len(spent) >= 3
    assert epsilon(spent, DELTA) <= 6.0
    assert epsilon([*spent, refused], DELTA) > 6.0
    ((reason,),) = await coordinator.sql("SELECT reason FROM work_items WHERE state = 'excluded'")
    assert "more than its budget of 6" in reason


async def test_two_runs_at_once_spend_one_budget(coordinator: Coordinator) -> None:
    """Each run fits by itself, and was created; together they do not. The ceiling of one run must
    not forget the other."""
    await coordinator.enrol("site-a", epsilon=4.5)
    plans = {"privacy": {"rounds": 2, "epsilon": 4.0}, "round": {"quorum": 1}}
    second = await coordinator.run("site-a", start=False, **{**plans, "name": "run-2"})
    first = await coordinator.run("site-a", **plans)
    await coordinator.finish(first, "site-a")
    spent = await charged(coordinator, "site-a")
    await coordinator.ok("POST", f"/v1/runs/{second['id']}/start")
    await coordinator.sweep()
    assert await charged(coordinator, "site-a") == spent
    ((reason,),) = await coordinator.sql("SELECT reason FROM work_items WHERE state = 'excluded'")
    assert "more than its budget of 4.5" in reason
