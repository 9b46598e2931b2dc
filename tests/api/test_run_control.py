"""Pause, resume, cancel; who leaves, who is revoked: the others go on, and the books are right."""

from __future__ import annotations

from typing import Any

import pytest

from core.federation.plan import RunSpec
from core.federation.selection import selected
from tests.api.support import Coordinator, problem

SITES = ("site-a", "site-b", "site-c")


async def act(
    coordinator: Coordinator, run: dict[str, Any], action: str, who: str = "admin", **body: Any
) -> dict[str, Any]:
    path = f"/v1/runs/{run['id']}/{action}"
    shown: dict[str, Any] = await coordinator.ok("POST", path, who, json=body)
    await coordinator.sweep()
    return shown


def seat_of(run: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [seat for seat in run["seats"] if seat["client"] == name]
    return dict(found)


async def test_a_paused_run_hands_out_nothing_and_finishes_what_is_in_hand(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol(*SITES)
    run = await coordinator.run(*SITES)
    held = await coordinator.poll("site-a")
    assert held is not None
    paused = await act(coordinator, run, "pause", seconds=5_000)
    assert (paused["state"], paused["why"]) == ("paused", "paused by the operator")
    assert paused["paused_until"] is not None
    assert await coordinator.poll("site-b") is None
    again = await coordinator.poll("site-a")  # an agent that restarted gets what it holds
    assert again is not None
    assert again["work_id"] == held["work_id"]
    why = (await coordinator.round(run, 0))["why"]
    assert why.startswith("paused by the operator; still working: site-a; cancelled unless resumed")
    assert (await coordinator.send(held)).status_code == 201
    coordinator.pass_time(1_000)  # far beyond the round's deadline of 100 s
    await coordinator.sweep()
    assert (await coordinator.round(run, 0))["state"] == "open"
    resumed = await act(coordinator, run, "resume")
    assert (resumed["state"], resumed["paused_until"]) == ("running", None)
    for name in ("site-b", "site-c"):
        await coordinator.work(name)
    await coordinator.aggregate()
    assert (await coordinator.round(run, 0))["state"] == "published"


async def test_the_round_gets_back_what_the_pause_took_from_its_deadline(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol(*SITES)
    run = await coordinator.run(*SITES)
    coordinator.pass_time(90)  # 10 s are left
    await act(coordinator, run, "pause")
    coordinator.pass_time(1_000)
    await act(coordinator, run, "resume")
    coordinator.pass_time(5)
    await coordinator.sweep()
    assert (await coordinator.round(run, 0))["state"] == "open"
    coordinator.pass_time(6)
    await coordinator.sweep()
    assert (await coordinator.round(run, 0))["state"] == "failed"


async def test_a_pause_between_rounds_waits_before_anything_is_reserved(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol(*SITES)
    run = await coordinator.run(*SITES)
    for name in SITES:
        await coordinator.work(name)
    await act(coordinator, run, "pause", seconds=500)
    await coordinator.aggregate()  # the sum spends nothing: it is made and published
    assert (await coordinator.round(run, 0))["state"] == "published"
    waiting = await coordinator.round(run, 1)
    assert (waiting["state"], "cancelled unless resumed by" in waiting["why"]) == ("draft", True)
    assert await coordinator.kinds("site-a") == ["reserve", "commit"]
    await act(coordinator, run, "resume")
    opened = await coordinator.round(run, 1)
    assert opened["state"] == "open"
    ended = await coordinator.finish({**run, "rounds_planned": 1}, *SITES)
    assert ended["state"] == "completed"


async def test_a_pause_that_nobody_ends_cancels_the_run(coordinator: Coordinator) -> None:
    await coordinator.enrol(*SITES)
    run = await coordinator.run(*SITES)
    held = await coordinator.poll("site-a")
    assert held is not None
    await act(coordinator, run, "pause", seconds=50)
    await act(coordinator, run, "pause", seconds=80)  # moves the end
    coordinator.pass_time(60)
    await coordinator.sweep()
    assert (await coordinator.ok("GET", f"/v1/runs/{run['id']}"))["state"] == "paused"
    coordinator.pass_time(21)
    await coordinator.sweep()
    ended = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert (ended["state"], ended["paused_until"]) == ("cancelled", None)
    assert "not resumed" in ended["why"]
    assert (await coordinator.round(run, 0))["state"] == "abandoned"
    problem(await coordinator.send(held), 409, "round-closed")
    for name in SITES:
        assert sorted(set(await coordinator.kinds(name))) == ["lost", "reserve"]


@pytest.mark.parametrize("action", ["pause", "resume"])
async def test_only_a_run_under_way_is_paused_or_resumed(
    coordinator: Coordinator, action: str
) -> None:
    await coordinator.enrol(*SITES)
    run = await coordinator.run(*SITES, start=False)
    path = f"/v1/runs/{run['id']}"
    found = problem(
        await coordinator.call("POST", f"{path}/{action}", json={}), 409, "conflict", "run_id"
    )
    assert "draft" in found["detail"]
    await coordinator.ok("POST", f"{path}/cancel")
    problem(await coordinator.call("POST", f"{path}/{action}", json={}), 409, "conflict", "run_id")
    started = await coordinator.call("POST", f"{path}/start")
    assert "was cancelled" in problem(started, 409, "conflict")["detail"]
    wrong = await coordinator.call("POST", f"{path}/pause", json={"seconds": -1})
    problem(wrong, 422, "invalid-request", "seconds")


async def test_managed_work_of_a_paused_run_is_announced_again_when_it_resumes(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol(*SITES, managed=True)
    run = await coordinator.run(*SITES)
    (work,) = await coordinator.managed_work("site-a")
    await act(coordinator, run, "pause")
    claim = f"/v1/work/{work.id}/claim"
    found = problem(await coordinator.call("POST", claim, "worker"), 409, "work-gone")
    assert "paused" in found["detail"]
    before = len(await coordinator.messages())
    await coordinator.sql("UPDATE outbox SET sent_at = clock_timestamp()")
    coordinator.pass_time(60)
    await coordinator.sweep()
    assert len(await coordinator.messages()) == before
    await act(coordinator, run, "resume")
    assert len(await coordinator.messages()) == before + len(SITES)
    await coordinator.ok("POST", claim, "worker")


async def test_a_client_leaves_and_the_others_go_on(coordinator: Coordinator) -> None:
    await coordinator.enrol(*SITES)
    run = await coordinator.run(*SITES)
    held = await coordinator.poll("site-c")
    assert held is not None
    leave = f"clients/{coordinator.clients['site-c']}/leave"
    for _ in range(2):
        shown = await act(coordinator, run, leave, "site-c", why="the study has ended")
    assert [seat["client"] for seat in shown["seats"]] == ["site-c"]  # it sees itself only
    assert (shown["seats"][0]["state"], shown["seats"][0]["why"]) == ("left", "the study has ended")
    problem(await coordinator.send(held), 409, "lease-lost")
    assert await coordinator.kinds("site-c") == ["reserve", "lost"]
    assert await coordinator.poll("site-c") is None
    for _ in range(run["rounds_planned"]):
        for name in ("site-a", "site-b"):
            await coordinator.work(name)
        await coordinator.aggregate()
    ended = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert ended["state"] == "completed"
    assert await coordinator.kinds("site-c") == ["reserve", "lost"]
    assert "left the run" in (await coordinator.round(run, 1))["clients"][2]["why"]


async def test_what_was_accepted_of_a_client_counts_after_it_has_left(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol(*SITES)
    run = await coordinator.run(*SITES)
    await coordinator.work("site-c")
    await act(coordinator, run, f"clients/{coordinator.clients['site-c']}/leave", why="the end")
    assert (await coordinator.round(run, 0))["updates_accepted"] == 1
    await coordinator.work("site-a")
    await coordinator.work("site-b")
    job = await coordinator.aggregate()
    assert [update["client"] for update in job["updates"]] == list(SITES)


async def test_below_the_quorum_the_run_fails_with_the_reason(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    await act(coordinator, run, f"clients/{coordinator.clients['site-b']}/leave", why="closing")
    ended = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert ended["state"] == "failed"
    assert "site-b (left the run)" in ended["why"]


async def test_nobody_takes_another_client_out(coordinator: Coordinator) -> None:
    await coordinator.enrol(*SITES, "outsider")
    run = await coordinator.run(*SITES)
    path = f"/v1/runs/{run['id']}/clients"
    for who, target in (("site-a", "site-b"), ("outsider", "site-a"), ("outsider", "outsider")):
        url = f"{path}/{coordinator.clients[target]}/leave"
        problem(await coordinator.call("POST", url, who, json={"why": "x"}), 404, "not-found")
    for who in ("worker", "scientist", "auditor"):
        url = f"{path}/{coordinator.clients['site-a']}/leave"
        problem(await coordinator.call("POST", url, who, json={"why": "x"}), 403, "forbidden")


async def test_a_revoked_client_is_let_in_nowhere_and_the_others_go_on(
    coordinator: Coordinator,
) -> None:
    """In two runs at once, with an order in hand in one of them."""
    await coordinator.enrol(*SITES, epsilon=20.0)
    first = await coordinator.run(*SITES)
    second = await coordinator.run(*SITES, name="run-2")
    held = await coordinator.poll("site-c")
    assert held is not None
    path = f"/v1/clients/{coordinator.clients['site-c']}/revoke"
    for _ in range(2):
        shown = await coordinator.ok("POST", path, json={"why": "key stolen"})
        assert shown["revoked_at"] is not None
    await coordinator.sweep()
    problem(await coordinator.send(held), 401, "unauthenticated")
    poll = f"/v1/clients/{coordinator.clients['site-c']}/work"
    problem(await coordinator.call("GET", poll, "site-c"), 401, "unauthenticated")
    assert await coordinator.kinds("site-c") == ["reserve", "reserve", "lost", "lost"]
    for run in (first, second):
        seen = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
        assert seat_of(seen, "site-c")["state"] == "revoked"
        assert seat_of(seen, "site-c")["why"] == "key stolen"
    for _ in range(first["rounds_planned"]):
        for name in ("site-a", "site-b") * 2:  # each works for both runs
            await coordinator.work(name)
        await coordinator.aggregate_any()
    for run in (first, second):
        assert (await coordinator.ok("GET", f"/v1/runs/{run['id']}"))["state"] == "completed"
    new = {"scope": "client", "label": "again", "client": "site-c"}
    problem(
        await coordinator.call("POST", "/v1/tokens", json=new), 422, "invalid-request", "client"
    )
    body = {"plan": {**first["spec"]["plan"], "name": "run-3"}, "clients": list(SITES)}
    refused = await coordinator.call("POST", "/v1/runs", json=body)
    assert "revoked" in problem(refused, 409, "conflict", "clients.2")["detail"]


async def test_a_training_round_is_of_the_clients_that_the_public_choice_names(
    coordinator: Coordinator,
) -> None:
    """The others are asked for nothing and pay for nothing; a site can check its own turn."""
    await coordinator.enrol(*SITES)
    run = await coordinator.run(
        *SITES, privacy={"rounds": 3}, round={"quorum": 1, "client_fraction": 0.6}
    )
    spec = RunSpec.model_validate(run["spec"])
    trained = dict.fromkeys(SITES, 0)
    for number in range(run["rounds_planned"]):
        chosen = [SITES[place] for place in selected(spec, len(SITES), number)]
        assert len(chosen) == (2 if spec.kind(number) == "train" else 3)
        shown = await coordinator.round(run, number)
        assert [client["client"] for client in shown["clients"]] == chosen
        for name in SITES:
            order = await coordinator.poll(name)
            assert (order is not None) == (name in chosen)
            if order is not None:
                assert SITES[order["position"]] == name
                assert (await coordinator.send(order)).status_code == 201
                trained[name] += spec.kind(number) == "train"
        job = await coordinator.aggregate()
        assert [update["client"] for update in job["updates"]] == chosen
    assert sorted(trained.values()) == [2, 2, 2] == [spec.participations] * 3
    assert (await coordinator.ok("GET", f"/v1/runs/{run['id']}"))["state"] == "completed"
    for name in SITES:
        statement = await coordinator.ledger(name)
        assert len(statement["entries"]) == 2 * (run["rounds_planned"] - 1)
        assert statement["epsilon_total"] <= run["epsilon_planned"]
