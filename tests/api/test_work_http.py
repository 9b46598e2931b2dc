"""Orders: the long poll, leases, renewals, work given back; and whose work it is."""

from __future__ import annotations

import asyncio
import time

import pytest

from core.wire.messages import LEASE_HEADER, WorkOrder
from tests.api.support import Coordinator, problem


def _lease(order: dict) -> dict[str, str]:
    return {LEASE_HEADER: order["lease_token"]}


async def test_an_order_says_everything_that_a_site_must_judge(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    run = await coordinator.run("site-a", round={"quorum": 1})
    order = WorkOrder.model_validate(await coordinator.poll("site-a"))
    assert order.spec.digest == order.spec_digest == run["spec_digest"]
    assert order.event == order.spec.event(0)
    assert (order.kind, order.attempt, order.inputs) == ("sketch", 1, ())
    await coordinator.send(order.model_dump(mode="json"))
    await coordinator.aggregate()
    following = WorkOrder.model_validate(await coordinator.poll("site-a"))
    assert following.kind == "train"
    assert [ref.role for ref in following.inputs] == ["frame", "weights"]


async def test_a_restarted_agent_gets_the_same_order_again(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    await coordinator.run("site-a", round={"quorum": 1})
    first = await coordinator.poll("site-a")
    coordinator.pass_time(8)
    assert await coordinator.poll("site-a") == first
    coordinator.pass_time(8)  # past the first lease, within the one that the poll began
    await coordinator.sweep()
    assert await coordinator.poll("site-a") == first


async def test_a_poll_waits_and_is_woken(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    path = f"/v1/clients/{coordinator.clients['site-a']}/work"
    began = time.monotonic()
    empty = await coordinator.call("GET", f"{path}?wait=0.2", "site-a")
    assert (empty.status_code, empty.content) == (204, b"")
    assert time.monotonic() - began >= 0.2
    waiting = asyncio.create_task(coordinator.call("GET", f"{path}?wait=20", "site-a"))
    listening = asyncio.create_task(coordinator.ctx.hub.run())
    try:
        await asyncio.sleep(0.2)
        await coordinator.run("site-a", round={"quorum": 1})
        began = time.monotonic()
        response = await waiting
        assert response.status_code == 200
        assert time.monotonic() - began < 0.9  # a notification, not the fallback of a second
    finally:
        listening.cancel()


async def test_a_stopping_server_ends_its_polls(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    path = f"/v1/clients/{coordinator.clients['site-a']}/work?wait=20"
    waiting = asyncio.create_task(coordinator.call("GET", path, "site-a"))
    await asyncio.sleep(0.1)
    coordinator.ctx.hub.close()
    assert (await asyncio.wait_for(waiting, 2)).status_code == 204


async def test_a_worker_claims_managed_work_once(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-m", managed=True)
    await coordinator.enrol("site-a")
    await coordinator.run("site-m", "site-a")
    (managed,) = await coordinator.managed_work("site-m")
    (agents,) = await coordinator.managed_work("site-a")
    answers = await asyncio.gather(
        *(coordinator.call("POST", f"/v1/work/{managed.id}/claim", "worker") for _ in range(4))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    order = next(answer.json() for answer in answers if answer.status_code == 200)
    refused = await coordinator.call("POST", f"/v1/work/{managed.id}/claim", "worker")
    problem(refused, 409, "work-leased")
    own = await coordinator.call("POST", f"/v1/work/{agents.id}/claim", "worker")
    problem(own, 404, "not-found")
    assert (await coordinator.send(order, who="worker")).status_code == 201
    gone = await coordinator.call("POST", f"/v1/work/{managed.id}/claim", "worker")
    problem(gone, 409, "work-gone")
    for who in ("admin", "site-a"):
        other = await coordinator.call("POST", f"/v1/work/{managed.id}/claim", who)
        problem(other, 403, "forbidden")


async def test_a_renewal_prolongs_and_a_lost_lease_stays_lost(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    await coordinator.run("site-a", round={"quorum": 1})
    order = await coordinator.poll("site-a")
    assert order is not None
    path = f"/v1/work/{order['work_id']}/renew"
    for _ in range(3):
        coordinator.pass_time(8)
        await coordinator.sweep()
        renewed = await coordinator.ok("POST", path, "site-a", headers=_lease(order))
        assert renewed == {"lease_s": 10.0}
    coordinator.pass_time(11)
    await coordinator.sweep()
    lost = await coordinator.call("POST", path, "site-a", headers=_lease(order))
    problem(lost, 409, "lease-lost")
    second = await coordinator.poll("site-a")
    assert second is not None
    assert (second["attempt"], second["work_id"] != order["work_id"]) == (2, True)
    assert await coordinator.kinds("site-a") == ["reserve", "lost", "reserve"]


async def test_a_site_that_is_not_ready_is_asked_again_after_a_pause(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    failed = await coordinator.call(
        "POST",
        f"/v1/work/{order['work_id']}/fail",
        "site-a",
        json={"code": "site-not-ready"},
        headers=_lease(order),
    )
    assert failed.status_code == 204
    again = await coordinator.call(
        "POST",
        f"/v1/work/{order['work_id']}/fail",
        "site-a",
        json={"code": "site-not-ready"},
        headers=_lease(order),
    )
    problem(again, 409, "lease-lost")
    await coordinator.sweep()
    assert await coordinator.poll("site-a") is None
    coordinator.pass_time(6)
    second = await coordinator.poll("site-a")
    assert second is not None
    assert second["attempt"] == 2
    assert await coordinator.kinds("site-a") == ["reserve", "lost", "reserve"]
    # The last attempt: then the quorum of 2 is out of reach and the run fails, with the reason.
    await coordinator.ok(
        "POST",
        f"/v1/work/{second['work_id']}/fail",
        "site-a",
        json={"code": "site-not-ready"},
        headers=_lease(second),
    )
    await coordinator.sweep()
    ended = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert ended["state"] == "failed"
    assert "quorum of 2 can no longer be reached" in ended["why"]
    assert "site-a (site-not-ready; no attempts are left)" in ended["why"]
    assert await coordinator.kinds("site-b") == ["reserve", "lost"]


async def test_a_refused_plan_is_final_for_the_round(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", round={"quorum": 1})
    order = await coordinator.poll("site-a")
    assert order is not None
    await coordinator.ok(
        "POST",
        f"/v1/work/{order['work_id']}/fail",
        "site-a",
        json={"code": "plan-refused"},
        headers=_lease(order),
    )
    await coordinator.sweep()
    assert await coordinator.poll("site-a") is None
    await coordinator.work("site-b")
    await coordinator.aggregate()
    shown = await coordinator.round(run, 0)
    assert (shown["state"], shown["missing_clients"]) == ("published", ["site-a"])
    # Without a sketch it has no code: it is left out of training, and nothing is reserved.
    following = await coordinator.round(run, 1)
    standing = {item["client"]: (item["standing"], item["why"]) for item in following["clients"]}
    assert standing["site-a"][0] == "out"
    assert "no sketch" in standing["site-a"][1]
    assert await coordinator.kinds("site-a") == ["reserve", "lost"]
    assert (await coordinator.ok("GET", f"/v1/runs/{run['id']}/model"))["clients"] == ["site-b"]


@pytest.mark.parametrize("action", ["renew", "fail"])
async def test_somebody_elses_work_does_not_exist(coordinator: Coordinator, action: str) -> None:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    options = {"headers": _lease(order), "json": {"code": "site-not-ready"}}
    path = f"/v1/work/{order['work_id']}/{action}"
    for who in ("site-b", "worker"):
        problem(await coordinator.call("POST", path, who, **options), 404, "not-found")
    for who in ("admin", "auditor", "scientist"):
        problem(await coordinator.call("POST", path, who, **options), 403, "forbidden")
    others = f"/v1/clients/{coordinator.clients['site-a']}/work"
    problem(await coordinator.call("GET", others, "site-b"), 404, "not-found")
    problem(await coordinator.call("GET", others, "worker"), 403, "forbidden")
    missing = await coordinator.call("POST", path, "site-a", json={"code": "site-not-ready"})
    problem(missing, 422, "invalid-request", LEASE_HEADER)
    stolen = {"headers": {LEASE_HEADER: "x"}, "json": {"code": "site-not-ready"}}
    problem(await coordinator.call("POST", path, "site-a", **stolen), 409, "lease-lost")
