"""What is told: in the transaction in which it happens, once, and no more than ids."""

from __future__ import annotations

from typing import Any

import pytest

from api.webhooks import kinds
from api.webhooks.watch import Watcher
from core.wire.credentials import new_token
from tests.api.support import Coordinator
from tests.api.test_enrolments import issue, redeem


@pytest.fixture(autouse=True)
async def webhook(coordinator: Coordinator) -> dict[str, Any]:
    body = {"url": "http://127.0.0.1:1/", "events": list(kinds.KINDS), "label": "test"}
    return dict(await coordinator.ok("POST", "/v1/webhooks", json=body))


async def told(coordinator: Coordinator, kind: str) -> list[dict[str, Any]]:
    """The data of all events of a kind that are to be delivered."""
    rows = await coordinator.sql(
        "SELECT e.data FROM webhook_events e JOIN webhook_deliveries d ON d.event_id = e.id "
        "WHERE e.kind = :kind ORDER BY e.id",
        kind=kind,
    )
    return [row[0] for row in rows]


async def test_a_refused_update_is_told_once(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    for _ in range(2):
        await coordinator.send(order, b"nothing", update_id=order["work_id"])
    assert await told(coordinator, "update-rejected") == [
        {
            "run_id": run["id"],
            "round": 0,
            "client_id": coordinator.clients["site-a"],
            "code": "update-unreadable",
            "see": f"/v1/runs/{run['id']}/rejections",
        }
    ]
    found = await coordinator.ok("GET", f"/v1/runs/{run['id']}/rejections")
    assert len(found["items"]) == 1


async def test_a_plan_that_awaits_consent_is_told(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b", "site-c")
    run = await coordinator.run(
        "site-a", "site-b", start=False, approved=False, privacy={"rounds": 0}
    )
    about = {"run_id": run["id"], "see": f"/v1/runs/{run['id']}"}
    assert await told(coordinator, "plan-awaiting-consent") == [{**about, "clients": 2}]
    await coordinator.approve(run, "site-a", "site-b")
    await coordinator.ok("POST", f"/v1/runs/{run['id']}/start")
    await coordinator.sweep()
    await coordinator.finish(run, "site-a", "site-b")
    await coordinator.join(run, "site-c")
    later = await told(coordinator, "plan-awaiting-consent")
    assert later[1:] == [{**about, "clients": 1}]


async def test_nothing_is_told_of_what_did_not_happen(coordinator: Coordinator) -> None:
    with pytest.raises(RuntimeError):
        async with coordinator.ctx.database.write() as session:
            assert await kinds.tell(session, "budget-80", see="/x")
            raise RuntimeError
    assert await told(coordinator, "budget-80") == []


async def test_a_round_that_was_extended_is_stuck(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", round={"extension_s": 50.0})
    await coordinator.work("site-a")
    coordinator.pass_time(101)
    for _ in range(3):
        await coordinator.sweep()
    shown = await coordinator.round(run, 0)
    assert (shown["state"], shown["extended"]) == ("open", True)
    assert await told(coordinator, "round-stuck") == [
        {
            "run_id": run["id"],
            "round": 0,
            "state": "open",
            "why": "extended",
            "see": f"/v1/runs/{run['id']}/rounds/0",
        }
    ]


async def test_time_makes_rounds_stuck_whoever_looks(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    watchers = [Watcher(coordinator.ctx), Watcher(coordinator.ctx)]

    async def why() -> list[str]:
        for watcher in watchers:
            await watcher.look()
        return [data["why"] for data in await told(coordinator, "round-stuck")]

    assert await why() == []
    coordinator.pass_time(155)  # nobody sweeps; its deadline is after 100
    assert await why() == []
    coordinator.pass_time(10)
    assert await why() == ["overdue"]
    coordinator.pass_time(900)
    assert await why() == await why() == ["overdue", "open-too-long"]


async def test_a_sum_that_nobody_makes_is_stuck_a_pause_is_not(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    await coordinator.run("site-a", round={"quorum": 1})
    await coordinator.work("site-a")
    await coordinator.sweep()
    paused = await coordinator.run("site-a", name="other", round={"quorum": 1})
    await coordinator.ok("POST", f"/v1/runs/{paused['id']}/pause", json={"seconds": 86_400.0})
    coordinator.pass_time(1_000)
    await Watcher(coordinator.ctx).look()
    found = [(data["state"], data["why"]) for data in await told(coordinator, "round-stuck")]
    assert found == [("aggregating", "summed-too-long")]


async def test_a_budget_at_80_percent_is_told_once(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", epsilon=4.9)
    await coordinator.enrol("site-b", epsilon=8.0)
    watcher = Watcher(coordinator.ctx)
    await watcher.look()
    assert await told(coordinator, "budget-80") == []
    await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    for _ in range(2):
        await watcher.look()
        await Watcher(coordinator.ctx).look()
    client = coordinator.clients["site-a"]
    ledger = await coordinator.ledger("site-a")
    assert 0.8 * 4.9 <= ledger["epsilon_total"] < 0.8 * 8.0
    assert await told(coordinator, "budget-80") == [
        {"client_id": client, "see": f"/v1/clients/{client}/ledger"}
    ]


async def test_without_a_webhook_nothing_is_kept(
    coordinator: Coordinator, webhook: dict[str, Any]
) -> None:
    await coordinator.call("DELETE", f"/v1/webhooks/{webhook['id']}")
    await coordinator.enrol("site-a", epsilon=4.9)
    await coordinator.run("site-a", privacy={"rounds": 0}, round={"quorum": 1})
    await Watcher(coordinator.ctx).look()
    assert await coordinator.sql("SELECT 1 FROM webhook_events") == []


async def test_a_site_that_waits_to_be_let_in_is_told_once(coordinator: Coordinator) -> None:
    made = await issue(coordinator)
    assert await told(coordinator, "client-enrolment-waiting") == []
    token = new_token("client")
    for _ in range(2):
        assert (await redeem(coordinator, made["code"], token)).status_code == 200
    found = await told(coordinator, "client-enrolment-waiting")
    assert found == [{"enrolment_id": made["id"], "see": "/v1/enrolments"}]
    assert made["code"] not in str(found)
