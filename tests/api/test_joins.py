"""Joining a completed run over HTTP: one sketch, one more model, and a run that stays completed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import psycopg
import pytest

from api import migration
from api.config import database_url as with_driver
from api.rounds import driver
from core.federation.plan import RunSpec
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.wire.messages import LEASE_HEADER
from tests.api.support import SPACE, Coordinator, problem, update_body
from tests.api.walk import Walk


async def completed(coordinator: Coordinator, **changes: Any) -> dict[str, Any]:
    """A run of site-a and site-b that has ended; site-c is enrolled and took no part."""
    await coordinator.enrol("site-a", "site-b", "site-c")
    run = await coordinator.run("site-a", "site-b", **changes)
    return await coordinator.finish(run, "site-a", "site-b")


async def joins(coordinator: Coordinator, run: dict[str, Any], who: str = "admin") -> list[Any]:
    return list((await coordinator.ok("GET", f"/v1/runs/{run['id']}/joins", who))["items"])


async def rows(coordinator: Coordinator, mixture: object) -> dict[str, Any]:
    body = {"run": "run-1", "mixture": mixture, "n": 20, "seed": 7}
    return dict(await coordinator.ok("POST", "/synthesize", "scientist", json=body))


def of(answer: dict[str, Any]) -> dict[str, Any]:
    """What the receipt says."""
    return dict(answer["receipt"]["receipt"])


async def ask(
    coordinator: Coordinator, run: dict[str, Any], *names: str, who: str = "admin", **how: Any
) -> Any:
    path = f"/v1/runs/{run['id']}/joins"
    return await coordinator.call("POST", path, who, json={"clients": list(names)}, **how)


# --- the way it goes ---


async def test_a_client_joins_and_nothing_changes_for_the_others(coordinator: Coordinator) -> None:
    run = await completed(coordinator)
    mixtures: list[Any] = ["neutral", {"site-a": 1.0}, {"site-a": 0.3, "site-b": 0.7}]
    before = [await rows(coordinator, mixture) for mixture in mixtures]
    ledger_a = await coordinator.ledger("site-a")

    made = await coordinator.join(run, "site-c")
    assert (made["round"], made["state"], made["clients"]) == (2, "draft", ["site-c"])
    (opened,) = await joins(coordinator, run)
    assert opened["state"] == "open"
    assert opened["why"].startswith("0 of 1 updates, quorum 1; not yet claimed: site-c")
    assert await coordinator.poll("site-a") is None
    order = await coordinator.poll("site-c")
    assert order is not None
    spec = RunSpec.model_validate(run["spec"])
    assert (order["kind"], order["round_number"], order["inputs"]) == ("join", 2, [])
    assert PrivacyEvent.model_validate(order["event"]) == spec.event(2)
    while_open = await rows(coordinator, {"site-a": 1.0})
    assert while_open == before[1]  # bit for bit: it is the model before
    unknown = await coordinator.call(
        "POST", "/synthesize", "scientist", json={"run": "run-1", "n": 1, "mixture": {"site-c": 1}}
    )
    problem(unknown, 422, "unknown-mixture-client")
    body = update_body(spec, 2, seed=9)  # a site of its own: the founding ones sent the same noise
    assert (await coordinator.send(order, body)).status_code == 201
    claimed = await coordinator.aggregate()
    assert (claimed["kind"], len(claimed["updates"])) == ("join", 1)

    shown = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert (shown["state"], shown["why"]) == ("completed", "")
    assert (shown["rounds_published"], shown["joins_published"]) == (2, 1)
    assert shown["current_round"] == 2
    assert shown["clients"] == ["site-a", "site-b", "site-c"]
    assert shown["finished_at"] == run["finished_at"]
    (ended,) = await joins(coordinator, run)
    assert (ended["state"], ended["members"][0]["standing"]) == ("published", "accepted")

    for mixture, old in zip(mixtures, before, strict=True):
        new = await rows(coordinator, mixture)
        assert new["label_ids"] == old["label_ids"]
        np.testing.assert_allclose(new["embeddings"], old["embeddings"], atol=1e-4)
        assert of(new)["model"]["weights_digest"] == of(old)["model"]["weights_digest"]
        assert of(new)["model"]["frame_digest"] != of(old)["model"]["frame_digest"]
    alone = await rows(coordinator, {"site-c": 1.0})
    blend = await rows(coordinator, {"site-c": 0.5, "site-a": 0.5})
    assert alone["embeddings"] != blend["embeddings"]
    receipt = of(alone)
    assert receipt["model"]["round"] == 2
    spent = {each["client"]: each["epsilon"] for each in receipt["per_client"]}
    assert spent["site-c"] == epsilon([spec.event(2)], 1e-5)
    assert spent["site-a"] == of(before[0])["per_client"][0]["epsilon"]
    assert [each["client"] for each in of(before[0])["per_client"]] == ["site-a", "site-b"]
    assert await coordinator.ledger("site-a") == ledger_a
    assert await coordinator.kinds("site-c") == ["reserve", "commit"]
    older = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model?round=1")
    assert older["clients"] == ["site-a", "site-b"]
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model", "site-c")
    assert (model["round"], model["clients"]) == (2, ["site-a", "site-b", "site-c"])
    assert [each["client"] for each in model["per_client"]] == ["site-c"]


async def test_several_join_at_once_and_who_posted_is_in(coordinator: Coordinator) -> None:
    run = await completed(coordinator, round={"deadline_s": 100.0})
    await coordinator.enrol("site-d", "site-e")
    await coordinator.join(run, "site-d", "site-c", "site-e")
    await coordinator.work("site-c")
    await coordinator.work("site-d")
    order = await coordinator.poll("site-e")
    assert order is not None
    refusal = await coordinator.call(
        "POST",
        f"/v1/work/{order['work_id']}/fail",
        "site-e",
        json={"code": "plan-refused"},
        headers={LEASE_HEADER: order["lease_token"]},
    )
    assert refusal.status_code == 204
    claimed = await coordinator.aggregate()
    assert [each["client"] for each in claimed["updates"]] == ["site-d", "site-c"]
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert model["clients"] == ["site-a", "site-b", "site-d", "site-c"]
    (own,) = await joins(coordinator, run, "site-d")
    assert (own["clients"], own["why"]) == (["site-d"], "")
    # Who was left out may come again; who is in may not.
    problem(await ask(coordinator, run, "site-e", "site-c"), 409, "conflict", "clients.1")
    await coordinator.join(run, "site-e")
    await coordinator.work("site-e")
    await coordinator.aggregate()
    assert len((await rows(coordinator, {"site-e": 0.5, "site-c": 0.5}))["labels"]) == 20


async def test_a_founding_client_that_missed_the_sketch_may_join(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b", "site-c")
    run = await coordinator.run(
        "site-a", "site-b", "site-c", privacy={"rounds": 0}, round={"deadline_s": 5.0}
    )
    await coordinator.work("site-a")
    await coordinator.work("site-b")
    coordinator.pass_time(6)
    await coordinator.aggregate()
    await coordinator.join(run, "site-c")
    await coordinator.work("site-c")
    await coordinator.aggregate()
    assert await coordinator.kinds("site-c") == ["reserve", "lost", "reserve", "commit"]
    assert of(await rows(coordinator, {"site-c": 1.0}))["model"]["round"] == 1


async def test_a_managed_client_joins_through_the_train_queue(coordinator: Coordinator) -> None:
    run = await completed(coordinator)
    await coordinator.enrol("kept", managed=True)
    await coordinator.join(run, "kept")
    (work,) = await coordinator.managed_work("kept")
    assert [(m.task, m.subject) for m in await coordinator.messages()][-1] == ("fhv.train", work.id)
    order = await coordinator.ok("POST", f"/v1/work/{work.id}/claim", "worker")
    assert order["kind"] == "join"
    assert (await coordinator.send(order, who="worker")).status_code == 201
    await coordinator.aggregate()
    assert "kept" in (await coordinator.ok("GET", f"/v1/runs/{run['id']}/model"))["clients"]


async def test_an_open_plan_lets_an_enrolled_client_join_by_itself(
    coordinator: Coordinator,
) -> None:
    run = await completed(coordinator, joining="open")
    other = await ask(coordinator, run, "site-b", who="site-c")
    problem(other, 403, "forbidden", "clients")
    made = await coordinator.join(run, "site-c", who="site-c")
    assert made["clients"] == ["site-c"]
    assert made["why"] == ""
    await coordinator.work("site-c")
    await coordinator.aggregate()
    (own,) = await joins(coordinator, run, "site-c")
    assert own["state"] == "published"
    assert await joins(coordinator, run, "site-a") == []


async def test_a_repeated_request_opens_one_join(coordinator: Coordinator) -> None:
    run = await completed(coordinator)
    key = {"Idempotency-Key": "once"}
    first = await ask(coordinator, run, "site-c", headers=key)
    again = await ask(coordinator, run, "site-c", headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    other = await ask(coordinator, run, "site-b", headers=key)
    problem(other, 409, "idempotency-key-reused")
    assert len(await joins(coordinator, run)) == 1


# --- what is refused ---


async def test_joins_are_by_invitation_unless_the_plan_says_otherwise(
    coordinator: Coordinator,
) -> None:
    run = await completed(coordinator)
    found = problem(
        await ask(coordinator, run, "site-c", who="site-c"), 403, "forbidden", "plan.joining"
    )
    assert f"POST /v1/runs/{run['id']}/joins" in found["mend"]
    for who in ("scientist", "worker", "auditor"):
        problem(await ask(coordinator, run, "site-c", who=who), 403, "forbidden")
    hidden = await coordinator.call("GET", f"/v1/runs/{run['id']}/joins", "site-c")
    problem(hidden, 404, "not-found")


@pytest.mark.parametrize("state", ["failed", "cancelled"])
async def test_a_run_that_has_ended_without_a_model_is_not_joined(
    coordinator: Coordinator, state: str
) -> None:
    await coordinator.enrol("site-a", "site-b", "site-c")
    run = await coordinator.run("site-a", "site-b")
    if state == "cancelled":
        await coordinator.ok("POST", f"/v1/runs/{run['id']}/cancel")
    else:
        coordinator.pass_time(101)
        await coordinator.sweep()
    found = problem(await ask(coordinator, run, "site-c"), 409, "conflict", "run_id")
    assert state in found["detail"]
    assert found["mend"]


@pytest.mark.parametrize("state", ["draft", "running", "paused"])
async def test_a_join_of_a_run_under_way_waits_and_disturbs_nobody(
    coordinator: Coordinator, state: str
) -> None:
    await coordinator.enrol("site-a", "site-b", "site-c", "site-d")
    run = await coordinator.run("site-a", "site-b", start=state != "draft")
    path = f"/v1/runs/{run['id']}"
    if state == "paused":
        await coordinator.ok("POST", f"{path}/pause", json={})
    for _ in range(2):
        answer = await ask(coordinator, run, "site-c")
        assert (answer.status_code, answer.json()["state"]) == (201, "queued"), answer.text
    assert state in answer.json()["why"]
    await ask(coordinator, run, "site-d")
    taken = problem(await ask(coordinator, run, "site-a"), 409, "conflict", "clients.0")
    assert "takes part" in taken["detail"]
    mine = await coordinator.ok("GET", f"{path}/joins", "site-c")
    assert [(item["state"], item["clients"]) for item in mine["items"]] == [("queued", ["site-c"])]
    await coordinator.sweep()
    assert await coordinator.kinds("site-c") == []
    if state == "draft":
        await coordinator.ok("POST", f"{path}/start")
    if state == "paused":
        await coordinator.ok("POST", f"{path}/resume")
    await coordinator.sweep()
    # One of those who wait is revoked meanwhile: it is dropped, the other one joins.
    gone = f"/v1/clients/{coordinator.clients['site-d']}/revoke"
    await coordinator.ok("POST", gone, json={"why": "moved away"})
    ended = await coordinator.finish(run, "site-a", "site-b")
    assert (ended["state"], ended["rounds_published"]) == ("completed", run["rounds_planned"])
    await coordinator.sweep()
    await coordinator.approve(run, "site-c")
    await coordinator.sweep()
    await coordinator.work("site-c")
    await coordinator.aggregate()
    items = (await coordinator.ok("GET", f"{path}/joins"))["items"]
    assert [(item["state"], item["clients"]) for item in items] == [
        ("published", ["site-c"]),
        ("dropped", ["site-d"]),
    ]
    assert "moved away" in items[1]["why"]
    assert await coordinator.kinds("site-c") == ["reserve", "commit"]


async def test_who_waits_for_a_run_that_fails_is_told_so(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b", "site-c")
    run = await coordinator.run("site-a", "site-b")
    await ask(coordinator, run, "site-c")
    await coordinator.ok("POST", f"/v1/runs/{run['id']}/cancel")
    await coordinator.sweep()
    (mine,) = (await coordinator.ok("GET", f"/v1/runs/{run['id']}/joins", "site-c"))["items"]
    assert (mine["state"], mine["round"]) == ("dropped", None)
    assert "the run is cancelled" in mine["why"]
    assert await coordinator.kinds("site-c") == []


async def test_who_cannot_join_is_named(coordinator: Coordinator) -> None:
    run = await completed(coordinator)
    await coordinator.enrol("poor", epsilon=0.1)
    await coordinator.enrol("patients", unit="patient")
    await coordinator.ok("POST", "/v1/spaces", json={**SPACE, "name": "other", "dim": 7})
    await coordinator.enrol("foreign", space="other")
    for names, status, code, field in (
        (["nobody"], 422, "invalid-request", "clients.0"),
        (["site-c", "site-c"], 422, "invalid-request", "clients"),
        ([], 422, "invalid-request", "clients"),
        (["site-c", "foreign"], 422, "space-mismatch", "clients.1"),
        (["patients"], 422, "invalid-plan", "clients.0"),
        (["site-c", "site-a"], 409, "conflict", "clients.1"),
        (["poor"], 409, "budget-exceeded", "clients.0"),
    ):
        problem(await ask(coordinator, run, *names), status, code, field)
    nowhere = {"id": "0199c0de-1111-7000-8000-000000000001"}
    problem(await ask(coordinator, nowhere, "site-c"), 404, "not-found")
    assert await joins(coordinator, run) == []


async def test_two_clients_of_one_population_need_two_sketches_budget(
    coordinator: Coordinator,
) -> None:
    run = await completed(coordinator)
    price = epsilon([RunSpec.model_validate(run["spec"]).event(2)], 1e-5)
    twin = {"site": "hospital-t", "population": "t/all", "epsilon": 1.2 * price}
    await coordinator.enrol("twin-1", "twin-2", **twin)
    problem(await ask(coordinator, run, "twin-1", "twin-2"), 409, "budget-exceeded", "clients.0")
    await coordinator.join(run, "twin-1")


async def test_one_join_at_a_time(coordinator: Coordinator) -> None:
    run = await completed(coordinator)
    await coordinator.enrol("site-d")
    await coordinator.join(run, "site-c")
    found = problem(await ask(coordinator, run, "site-d"), 409, "conflict", "run_id")
    assert "joins" in found["mend"]
    await coordinator.work("site-c")
    await coordinator.aggregate()
    assert (await ask(coordinator, run, "site-d")).status_code == 201


# --- what can go wrong ---


async def test_a_join_that_fails_leaves_the_run_as_it_was(coordinator: Coordinator) -> None:
    """Nobody posts; the reservation is lost, the model stays, and the client may try again."""
    run = await completed(coordinator)
    before = await rows(coordinator, {"site-a": 1.0})
    await coordinator.join(run, "site-c")
    coordinator.pass_time(101)
    await coordinator.sweep()
    (ended,) = await joins(coordinator, run)
    assert ended["state"] == "failed"
    assert "0 of 1 updates needed; missing: site-c" in ended["why"]
    shown = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert (shown["state"], shown["why"], shown["joins_published"]) == ("completed", "", 0)
    assert await rows(coordinator, {"site-a": 1.0}) == before
    assert await coordinator.kinds("site-c") == ["reserve", "lost"]
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert (model["round"], model["clients"]) == (1, ["site-a", "site-b"])
    again = await coordinator.join(run, "site-c")
    assert again["round"] == 3
    await coordinator.work("site-c")
    await coordinator.aggregate()
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert (model["round"], model["clients"][-1]) == (3, "site-c")
    # Both attempts were paid for, and the receipt says so.
    events = [RunSpec.model_validate(run["spec"]).event(2)] * 2
    assert model["per_client"][-1]["epsilon"] == epsilon(events, 1e-5)
    assert [item["state"] for item in await joins(coordinator, run)] == ["failed", "published"]


async def test_a_budget_that_ran_out_since_leaves_the_client_out(coordinator: Coordinator) -> None:
    run = await completed(coordinator)
    price = epsilon([RunSpec.model_validate(run["spec"]).event(2)], 1e-5)
    await coordinator.enrol("short", epsilon=1.2 * price)
    await coordinator.join(run, "short")
    order = await coordinator.poll("short")
    assert order is not None
    coordinator.pass_time(11)  # the lease ends; a second attempt cannot be paid
    await coordinator.sweep()
    (ended,) = await joins(coordinator, run, "short")
    assert ended["state"] == "failed"
    assert "more than its budget" in ended["why"]
    problem(await coordinator.send(order), 409, "round-closed")
    problem(await ask(coordinator, run, "short"), 409, "budget-exceeded", "clients.0")


async def test_an_operator_abandons_a_join_but_not_the_run(coordinator: Coordinator) -> None:
    run = await completed(coordinator)
    await coordinator.join(run, "site-c")
    await coordinator.work("site-c")
    await coordinator.sweep()  # its sum is queued
    job = await coordinator.job()
    for _ in range(2):
        shown = await coordinator.ok("POST", f"/v1/runs/{run['id']}/cancel")
        assert shown["state"] == "completed"
    (ended,) = await joins(coordinator, run)
    assert (ended["state"], ended["why"]) == ("abandoned", "stopped by the operator")
    late = await coordinator.call("POST", f"/v1/jobs/{job.id}/claim", "worker")
    problem(late, 409, "work-gone")
    sent = len(await coordinator.messages())
    coordinator.pass_time(3_600)
    await coordinator.sweep()
    assert len(await coordinator.messages()) == sent  # nobody is told of that job again
    await coordinator.join(run, "site-c")
    await coordinator.work("site-c")
    await coordinator.aggregate()
    assert of(await rows(coordinator, {"site-c": 1.0}))["model"]["round"] == 3


async def test_a_join_whose_sum_fails_is_told_in_the_listing(coordinator: Coordinator) -> None:
    run = await completed(coordinator)
    await coordinator.join(run, "site-c")
    await coordinator.work("site-c")
    for _ in range(coordinator.ctx.settings.job_attempts):
        await coordinator.sweep()
        job = await coordinator.job()
        claimed = await coordinator.ok("POST", f"/v1/jobs/{job.id}/claim", "worker")
        await coordinator.ok(
            "POST",
            f"/v1/jobs/{job.id}/fail",
            "worker",
            json={"code": "object-missing", "detail": "gone"},
            headers={LEASE_HEADER: claimed["lease_token"]},
        )
        coordinator.pass_time(61)
    await coordinator.sweep()
    (ended,) = await joins(coordinator, run)
    assert ended["state"] == "failed"
    assert "could not be summed: object-missing: gone" in ended["why"]
    assert (await coordinator.ok("GET", f"/v1/runs/{run['id']}"))["state"] == "completed"
    # Its update was accepted and paid for, but it is in no model: it has no code and may try again.
    assert "site-c" not in (await coordinator.ok("GET", f"/v1/runs/{run['id']}/model"))["clients"]
    assert (await ask(coordinator, run, "site-c")).status_code == 201


@pytest.mark.parametrize("seed", range(3))
async def test_a_join_survives_kills_at_any_point(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The random walk of ``test_protocol_walk`` over a join: the books stay right, it ends."""
    run = await completed(coordinator, round={"max_attempts": 4, "deadline_s": 300.0})
    await coordinator.join(run, "site-c")
    walk = Walk(coordinator, random.Random(seed), monkeypatch)
    for step in range(40):
        await walk.one()
        if step % 10 == 9:
            await walk.check()
    for _ in range(40):
        (ended,) = await joins(coordinator, run)
        if ended["state"] in ("published", "failed"):
            break
        order = await coordinator.poll("site-c")
        if order is not None:
            await coordinator.send(order)
        await coordinator.sweep()
        await walk.work_for_the_coordinator(silent=0.0)
        await coordinator.sweep()
        coordinator.pass_time(13)
    else:
        raise AssertionError(f"the join hangs: {ended}")
    await walk.check()
    shown = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert (shown["state"], shown["rounds_published"]) == ("completed", 2)
    assert shown["joins_published"] == (ended["state"] == "published")
    assert len(await joins(coordinator, run)) == 1


async def test_killed_while_it_is_asked_for_there_is_no_join(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await completed(coordinator)

    async def dies(*_: object) -> None:
        raise OSError("the process is gone")

    with monkeypatch.context() as patch:
        patch.setattr("api.joins.service.ring", dies)
        problem(await ask(coordinator, run, "site-c"), 500, "internal-error")
    assert await joins(coordinator, run) == []
    assert await coordinator.sql("SELECT 1 FROM run_clients WHERE NOT founding") == []
    assert not await driver.step(coordinator.ctx, run["id"])  # a completed run has nothing to do
    assert (await ask(coordinator, run, "site-c")).status_code == 201


# --- the schema ---


async def test_the_schema_refuses_a_second_code(coordinator: Coordinator) -> None:
    run = await completed(coordinator, privacy={"rounds": 0})
    await coordinator.join(run, "site-c")
    await coordinator.work("site-c")
    await coordinator.aggregate()
    for name in ("site-a", "site-c"):
        with pytest.raises(Exception, match="has a code in this run"):
            await coordinator.sql(
                "INSERT INTO join_members SELECT run_id, number, (SELECT id FROM clients "
                "WHERE name = :name) FROM rounds WHERE number = 0",
                name=name,
            )


async def test_a_database_with_joins_does_not_go_back_before_them(
    coordinator: Coordinator, database_url: str
) -> None:
    run = await completed(coordinator, privacy={"rounds": 0})
    await coordinator.join(run, "site-c")
    with pytest.raises(Exception, match="cannot go back"):
        migration.downgrade(with_driver(database_url), "0002")
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM join_members").fetchone() == (1,)
