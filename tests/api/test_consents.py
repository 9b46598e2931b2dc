"""Site consent over HTTP: what is shown to whom, decided once, and nothing spent before."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from api.db.oversight_models import AuditEvent, Consent
from api.db.run_models import WorkItem
from core.federation.plan import RunSpec
from core.privacy.accounting import epsilon
from core.wire.messages import PlanOffer
from tests.api.support import Coordinator, problem

V2 = {"X-FHV-Protocol": "2", "X-FHV-Protocol-Range": "1-2"}


async def plans(coordinator: Coordinator, name: str, who: str = "admin", **query: Any) -> Any:
    path = f"/v1/clients/{coordinator.clients[name]}/plans"
    return (await coordinator.ok("GET", path, who, params=query))["items"]


async def offered(coordinator: Coordinator, name: str, **query: Any) -> Any:
    """What the long poll answers an agent of protocol 2; None for nothing."""
    path = f"/v1/clients/{coordinator.clients[name]}/work"
    answer = await coordinator.call("GET", path, name, headers=V2, params=query)
    return answer.json() if answer.status_code == 200 else None


async def asked(coordinator: Coordinator, *names: str, **changes: Any) -> dict[str, Any]:
    """A started run of unmanaged clients whose sites have said nothing yet."""
    await coordinator.enrol(*names)
    return await coordinator.run(*names, approved=False, **changes)


# --- what is shown ---


async def test_a_plan_is_shown_with_its_whole_spec_and_its_price(coordinator: Coordinator) -> None:
    run = await asked(coordinator, "site-a", "site-b")
    (shown,) = await plans(coordinator, "site-a", "site-a")
    plan = PlanOffer.model_validate(shown)
    spec = RunSpec.model_validate(run["spec"])
    price = epsilon(spec.events(), 1e-5)
    assert (plan.spec, plan.spec_digest, plan.run) == (spec, spec.digest, "run-1")
    assert (plan.epsilon_plan, plan.epsilon_spent, plan.epsilon_after) == (price, 0.0, price)
    assert (plan.state, plan.decided_by, plan.joins, plan.rounds) == ("asked", None, False, 2)
    opened = await coordinator.round(run, 0)
    assert shown["round_number"] == 0
    assert shown["deadline"] == opened["deadline"]
    (row,) = await coordinator.rows(Consent, Consent.client_id == UUID(plan.client_id))
    assert row.epsilon == price


async def test_the_shared_account_shows_what_another_client_spends(
    coordinator: Coordinator,
) -> None:
    """Two clients over one population: what one does is in what the other is shown."""
    shared = {"site": "hospital", "population": "everybody", "epsilon": 12.0}
    await coordinator.enrol("site-a", "site-b", **shared)
    run = await coordinator.run("site-a", "site-b", approved=False, privacy={"rounds": 0})
    spec = RunSpec.model_validate(run["spec"])
    one, two = epsilon(spec.events(), 1e-5), epsilon([*spec.events()] * 2, 1e-5)
    for name in ("site-a", "site-b"):
        (plan,) = await plans(coordinator, name)
        assert (plan["epsilon_plan"], plan["epsilon_spent"], plan["epsilon_after"]) == (
            one,
            0.0,
            two,  # the other one's plan is on the same account
        )
    await coordinator.approve(run, "site-a")
    await coordinator.sweep()
    await coordinator.work("site-a")
    (plan,) = await plans(coordinator, "site-b")
    assert (plan["epsilon_plan"], plan["epsilon_spent"]) == (one, one)
    assert plan["epsilon_after"] == two
    # A refusal of the other takes its plan out of the sum.
    other = await coordinator.run("site-a", "site-b", name="run-2", start=False, approved=False)
    assert (await coordinator.consent(other, "site-a", decision="refuse")).status_code == 200
    (_, plan) = await plans(coordinator, "site-b")
    rest = RunSpec.model_validate(other["spec"]).events()
    assert plan["epsilon_after"] == epsilon([*spec.events(), *rest], 1e-5)


async def test_plans_are_listed_by_state_and_page(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    runs = [
        await coordinator.run("site-a", "site-b", name=f"run-{n}", start=False, approved=False)
        for n in range(3)
    ]
    await coordinator.approve(runs[0], "site-a")
    assert [p["run"] for p in await plans(coordinator, "site-a")] == ["run-0", "run-1", "run-2"]
    assert [p["run"] for p in await plans(coordinator, "site-a", state="asked")] == [
        "run-1",
        "run-2",
    ]
    path = f"/v1/clients/{coordinator.clients['site-a']}/plans"
    first = await coordinator.ok("GET", path, "auditor", params={"limit": 2})
    rest = await coordinator.ok("GET", path, "auditor", params={"after": first["next"]})
    assert [p["run"] for p in first["items"] + rest["items"]] == ["run-0", "run-1", "run-2"]
    assert rest["next"] is None
    # A run that has ended asks nobody.
    await coordinator.ok("POST", f"/v1/runs/{runs[1]['id']}/cancel")
    assert [p["run"] for p in await plans(coordinator, "site-a", state="asked")] == ["run-2"]
    late = await coordinator.consent(runs[1], "site-a")
    problem(late, 409, "conflict", "run_id")


async def test_who_may_look_and_who_may_decide(coordinator: Coordinator) -> None:
    run = await asked(coordinator, "site-a", "site-b")
    await coordinator.enrol("site-m", managed=True)
    managed = await coordinator.run("site-m", name="run-m", approved=False, round={"quorum": 1})
    path = f"/v1/clients/{coordinator.clients['site-a']}/plans"
    for who, status in (("admin", 200), ("auditor", 200), ("site-a", 200), ("site-b", 404),
                        ("worker", 403), ("scientist", 403)):  # fmt: skip
        assert (await coordinator.call("GET", path, who)).status_code == status, who
    for who in ("site-a", "scientist"):
        problem(await coordinator.call("GET", "/v1/plans", who), 403, "forbidden")
    everything = (await coordinator.ok("GET", "/v1/plans", "auditor"))["items"]
    assert [p["client"] for p in everything] == ["site-a", "site-b", "site-m"]
    own = (await coordinator.ok("GET", "/v1/plans", "worker"))["items"]
    assert [p["client"] for p in own] == ["site-m"]
    assert (await coordinator.ok("GET", "/v1/plans", "worker", params={"client": "site-a"}))[
        "items"
    ] == []

    body = {"spec_digest": run["spec_digest"], "decision": "approve", "by": "person"}
    decide = f"/v1/runs/{run['id']}/consents"
    for who, client, status in (
        ("site-b", "site-a", 404),  # another client's plan
        ("worker", "site-a", 404),  # not a managed client
        ("site-a", "site-m", 404),
        ("site-a", "nobody", 404),
        ("admin", "site-a", 403),
        ("auditor", "site-a", 403),
    ):
        answer = await coordinator.call("POST", decide, who, json={**body, "client": client})
        assert answer.status_code == status, (who, client, answer.text)
    stranger = await coordinator.call(
        "POST",
        f"/v1/runs/{managed['id']}/consents",
        "site-a",
        json={**body, "spec_digest": managed["spec_digest"], "client": "site-a"},
    )
    problem(stranger, 404, "not-found")
    assert (await coordinator.consent(managed, "site-m")).status_code == 200
    states = {row.client_id: row.state for row in await coordinator.rows(Consent)}
    assert states[UUID(coordinator.clients["site-a"])] == "asked"
    assert states[UUID(coordinator.clients["site-m"])] == "approved"


# --- nothing before the word, and what follows it ---


async def test_nothing_is_reserved_or_issued_before_the_site_has_approved(
    coordinator: Coordinator,
) -> None:
    run = await asked(coordinator, "site-a", "site-b")
    for _ in range(3):
        await coordinator.sweep()
        coordinator.pass_time(10)
    assert await coordinator.kinds("site-a") == []
    assert await coordinator.rows(WorkItem) == []
    shown = await coordinator.round(run, 0)
    assert {m["client"]: m["standing"] for m in shown["clients"]} == {
        "site-a": "asked",
        "site-b": "asked",
    }
    assert "consent awaited: site-a, site-b" in shown["why"]
    offer = await offered(coordinator, "site-a")
    assert (offer["type"], offer["plan"]["run_id"]) == ("plan", run["id"])
    await coordinator.approve(run, "site-a")
    await coordinator.sweep()
    order = await offered(coordinator, "site-a")
    assert (order["type"], order["order"]["round_number"]) == ("order", 0)
    assert await coordinator.kinds("site-a") == ["reserve"]
    assert await coordinator.kinds("site-b") == []


async def test_a_silent_site_waits_until_the_deadline_and_no_longer(
    coordinator: Coordinator,
) -> None:
    run = await asked(coordinator, "site-a", "site-b", round={"quorum": 1})
    await coordinator.approve(run, "site-a")
    await coordinator.sweep()
    await coordinator.work("site-a")
    await coordinator.sweep()
    assert (await coordinator.round(run, 0))["state"] == "open"
    coordinator.pass_time(101)
    await coordinator.aggregate()
    assert (await coordinator.round(run, 0))["state"] == "published"
    assert await coordinator.kinds("site-b") == []


async def test_a_refusal_puts_the_client_out_and_its_reason_stays_between_two(
    coordinator: Coordinator,
) -> None:
    run = await asked(coordinator, "site-a", "site-b")
    why = "the ethics board said no"
    refused = await coordinator.consent(run, "site-b", decision="refuse", by="person", why=why)
    assert (refused.status_code, refused.json()["why"]) == (200, why)
    await coordinator.approve(run, "site-a")
    await coordinator.sweep()
    ended = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert ended["state"] == "failed"
    assert "site-b (its site refused the plan)" in ended["why"]
    assert {seat["client"]: seat["why"] for seat in ended["seats"]}["site-b"] == why
    assert await coordinator.kinds("site-b") == []
    # Nothing that site-a may read says it; site-b itself and overseers may.
    for path in (
        f"/v1/runs/{run['id']}",
        f"/v1/runs/{run['id']}/rounds",
        f"/v1/runs/{run['id']}/rounds/0",
        f"/v1/clients/{coordinator.clients['site-a']}/plans",
        "/v1/runs",
    ):
        assert why not in (await coordinator.call("GET", path, "site-a")).text, path
    assert why in (await coordinator.call("GET", f"/v1/runs/{run['id']}", "site-b")).text
    assert (await plans(coordinator, "site-b", "auditor"))[0]["why"] == why
    told = [event for event in await coordinator.rows(AuditEvent) if "consent" in event.kind]
    assert [event.kind for event in told] == ["consent-refused", "consent-approved"]
    assert all(why not in str(event.detail) for event in told)
    assert told[0].detail["by"] == "person"
    assert told[0].client_id == UUID(coordinator.clients["site-b"])


async def test_the_others_go_on_without_a_site_that_refuses(coordinator: Coordinator) -> None:
    run = await asked(coordinator, "site-a", "site-b", round={"quorum": 1})
    await coordinator.consent(run, "site-b", decision="refuse")
    await coordinator.approve(run, "site-a")
    await coordinator.sweep()
    for _ in range(run["rounds_planned"]):
        await coordinator.work("site-a")
        await coordinator.aggregate()
    assert (await coordinator.ok("GET", f"/v1/runs/{run['id']}"))["state"] == "completed"
    assert await coordinator.kinds("site-b") == []


async def test_decided_once(coordinator: Coordinator) -> None:
    run = await asked(coordinator, "site-a", "site-b")
    wrong = await coordinator.consent(run, "site-a", spec_digest="sha256:" + "0" * 64)
    problem(wrong, 409, "conflict", "spec_digest")
    for body in ({"decision": "perhaps"}, {"by": "nobody"}, {"why": "x" * 201}, {"more": 1},
                 {"spec_digest": "abc"}):  # fmt: skip
        invalid = await coordinator.consent(run, "site-a", **body)
        problem(invalid, 422, "invalid-request", next(iter(body)))
    first = await coordinator.consent(run, "site-a", by="person", why="looked at it")
    again = await coordinator.consent(run, "site-a", by="policy", why="something else")
    assert (again.status_code, again.json()) == (200, first.json())
    assert (first.json()["decided_by"], first.json()["why"]) == ("person", "looked at it")
    other = problem(await coordinator.consent(run, "site-a", decision="refuse"), 409, "conflict")
    assert f"/clients/{coordinator.clients['site-a']}/leave" in other["mend"]
    answers = await asyncio.gather(
        *(
            coordinator.consent(run, "site-b", decision=verb)
            for verb in ("approve", "refuse", "approve", "refuse")
        )
    )
    codes = [answer.status_code for answer in answers]
    assert sorted(codes) == [200, 200, 409, 409]
    assert codes[0] == codes[2]


async def test_an_order_is_not_handed_out_whatever_made_it(coordinator: Coordinator) -> None:
    """Defence in depth: work that no state machine should have made is not found either."""
    await coordinator.enrol("site-a")
    await coordinator.enrol("site-m", managed=True)
    run = await coordinator.run("site-a", "site-m")
    (work,) = await coordinator.managed_work("site-m")
    assert await coordinator.poll("site-a") is not None
    # As if the rows were there without consent.
    async with coordinator.ctx.database.write() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers
        await session.execute(
            text("UPDATE consents SET state = 'refused' WHERE run_id = :run"), {"run": run["id"]}
        )
    assert await coordinator.poll("site-a") is None
    claimed = await coordinator.call("POST", f"/v1/work/{work.id}/claim", "worker")
    problem(claimed, 409, "work-gone")


async def test_a_poll_is_woken_by_a_plan_and_not_told_twice(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    listening = asyncio.create_task(coordinator.ctx.hub.run())
    try:
        await asyncio.sleep(0.2)
        waiting = asyncio.create_task(offered(coordinator, "site-a", wait=20))
        await asyncio.sleep(0.2)
        run = await coordinator.run(
            "site-a", approved=False, start=False, round={"quorum": 1}
        )  # a draft asks already
        offer = await asyncio.wait_for(waiting, 5)
        assert offer["plan"]["run_id"] == run["id"]
        seen = [offer["plan"]["plan_id"]]
        assert await offered(coordinator, "site-a", seen=seen) is None
        second = await coordinator.run(
            "site-a", name="run-2", approved=False, start=False, round={"quorum": 1}
        )
        other = await offered(coordinator, "site-a", seen=seen)
        assert other["plan"]["run_id"] == second["id"]
        assert await offered(coordinator, "site-a", seen=seen, run=run["id"]) is None
    finally:
        listening.cancel()


# --- managed clients, joins ---


async def test_managed_plans_are_announced_until_somebody_has_decided(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-m", managed=True)
    run = await coordinator.run("site-m", approved=False, round={"quorum": 1, "deadline_s": 1e4})
    (row,) = await coordinator.rows(Consent)
    (first,) = await coordinator.messages("fhv.consent")
    assert (first.subject, first.queue) == (row.id, "train")
    coordinator.pass_time(11)
    await coordinator.sweep()
    assert len(await coordinator.messages("fhv.consent")) == 1  # the first is still to be sent
    for _ in range(2):
        await coordinator.sql("UPDATE outbox SET sent_at = now()")
        coordinator.pass_time(21)
        await coordinator.sweep()
    assert len(await coordinator.messages("fhv.consent")) == 3
    assert await coordinator.managed_work("site-m") == []
    # For workers that do not know such messages; to those that do, there is no such work.
    others = await coordinator.messages("fhv.train")
    assert [message.subject for message in others] == [row.id, row.id]
    claimed = await coordinator.call("POST", f"/v1/work/{row.id}/claim", "worker", headers=V2)
    problem(claimed, 404, "not-found")
    assert (await coordinator.rows(Consent))[0].state == "asked"
    assert (await coordinator.consent(run, "site-m")).status_code == 200
    await coordinator.sql("UPDATE outbox SET sent_at = now()")
    coordinator.pass_time(60)
    await coordinator.sweep()
    assert len(await coordinator.messages("fhv.consent")) == 3
    (work,) = await coordinator.managed_work("site-m")
    assert work.id in {message.subject for message in await coordinator.messages("fhv.train")}


async def test_a_join_awaits_its_site(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b", "site-c")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    await coordinator.finish(run, "site-a", "site-b")
    path, body = f"/v1/runs/{run['id']}/joins", {"clients": ["site-c"]}
    await coordinator.ok("POST", path, json=body)
    await coordinator.sweep()
    (plan,) = await plans(coordinator, "site-c", state="asked")
    spec = RunSpec.model_validate(run["spec"])
    assert (plan["joins"], plan["rounds"], plan["round_number"]) == (True, 1, 1)
    assert plan["epsilon_plan"] == plan["epsilon_after"] == epsilon([spec.event(1)], 1e-5)
    assert await coordinator.kinds("site-c") == []
    refused = await coordinator.consent(run, "site-c", decision="refuse", by="person")
    assert refused.status_code == 200
    await coordinator.sweep()
    (join,) = (await coordinator.ok("GET", path))["items"]
    assert join["state"] == "failed"
    assert await coordinator.kinds("site-c") == []
    again = await coordinator.call("POST", path, json=body)
    problem(again, 409, "conflict", "clients.0")


# --- versions ---


async def test_an_old_agent_works_as_before_and_is_recorded(coordinator: Coordinator) -> None:
    """Protocol 1: the poll answers a bare order; asking for work is the policy's consent."""
    run = await asked(coordinator, "site-a", "site-b", round={"quorum": 1})
    path = f"/v1/clients/{coordinator.clients['site-a']}/work"
    first = await coordinator.call("GET", path, "site-a", headers={"X-FHV-Protocol": "1"})
    assert first.status_code == 204
    await coordinator.sweep()
    order = await coordinator.call("GET", path, "site-a", headers={"X-FHV-Protocol": "1"})
    assert (order.headers["X-FHV-Protocol"], order.json()["run_id"]) == ("1", run["id"])
    (plan,) = await plans(coordinator, "site-a")
    assert (plan["state"], plan["decided_by"]) == ("approved", "policy")
    assert "protocol 1" in plan["why"]
    assert (await coordinator.send(order.json())).status_code == 201
    assert (await plans(coordinator, "site-b"))[0]["state"] == "asked"


async def test_an_old_worker_works_as_before_and_is_recorded(coordinator: Coordinator) -> None:
    """It knows messages about work only; claiming a plan as work is the policy's consent."""
    old = {"X-FHV-Protocol": "1"}
    await coordinator.enrol("site-m", "site-x", managed=True)
    await coordinator.run("site-m", approved=False, round={"quorum": 1})
    (row,) = await coordinator.rows(Consent)
    claimed = await coordinator.call("POST", f"/v1/work/{row.id}/claim", "worker", headers=old)
    problem(claimed, 404, "not-found")  # which ends the message there
    (plan,) = await plans(coordinator, "site-m")
    assert (plan["state"], plan["decided_by"]) == ("approved", "policy")
    await coordinator.sweep()
    (work,) = await coordinator.managed_work("site-m")
    order = await coordinator.ok("POST", f"/v1/work/{work.id}/claim", "worker", headers=old)
    assert order["round_number"] == 0
    # An agent's plan is not a worker's to approve.
    await coordinator.enrol("site-a")
    await coordinator.run("site-a", name="run-2", approved=False, round={"quorum": 1})
    (asked,) = await coordinator.rows(Consent, Consent.state == "asked")
    await coordinator.call("POST", f"/v1/work/{asked.id}/claim", "worker", headers=old)
    assert [p["state"] for p in await plans(coordinator, "site-a")] == ["asked"]


@pytest.mark.parametrize(
    ("headers", "used"),
    [
        ({}, "1"),
        ({"X-FHV-Protocol": "1"}, "1"),
        ({"X-FHV-Protocol": "2"}, "2"),
        ({"X-FHV-Protocol": "2", "X-FHV-Protocol-Range": "1-2"}, "2"),
        ({"X-FHV-Protocol": "1", "X-FHV-Protocol-Range": "1-2"}, "2"),
        ({"X-FHV-Protocol": "3", "X-FHV-Protocol-Range": "2-3"}, "3"),
        ({"X-FHV-Protocol": "4", "X-FHV-Protocol-Range": "3-4"}, "3"),
    ],
)
async def test_the_newest_common_version_is_spoken(
    coordinator: Coordinator, headers: dict[str, str], used: str
) -> None:
    answer = await coordinator.call("GET", "/healthz", None, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["X-FHV-Protocol"] == used
    assert answer.headers["X-FHV-Protocol-Range"] == "1-3"


@pytest.mark.parametrize(
    ("headers", "field", "mend"),
    [
        ({"X-FHV-Protocol": "4"}, "X-FHV-Protocol", "Upgrade the coordinator"),
        ({"X-FHV-Protocol": "5", "X-FHV-Protocol-Range": "4-5"}, "X-FHV-Protocol",
         "Upgrade the coordinator"),
        ({"X-FHV-Protocol": "two"}, "X-FHV-Protocol", "leave the header out"),
        ({"X-FHV-Protocol": "0"}, "X-FHV-Protocol", "leave the header out"),
        ({"X-FHV-Protocol": "2" * 500}, "X-FHV-Protocol", "leave the header out"),
        ({"X-FHV-Protocol": "2", "X-FHV-Protocol-Range": "2-1"}, "X-FHV-Protocol-Range",
         "leave the header out"),
        ({"X-FHV-Protocol": "2", "X-FHV-Protocol-Range": "all"}, "X-FHV-Protocol-Range",
         "leave the header out"),
    ],
)  # fmt: skip
async def test_versions_that_do_not_meet_get_a_clear_answer(
    coordinator: Coordinator, headers: dict[str, str], field: str, mend: str
) -> None:
    answer = await coordinator.call("GET", "/v1/runs", headers=headers)
    body = problem(answer, 400, "unsupported-protocol", field)
    assert (body["protocol_oldest"], body["protocol_newest"]) == (1, 3)
    assert mend in body["mend"]
    assert len(body["detail"]) < 200
