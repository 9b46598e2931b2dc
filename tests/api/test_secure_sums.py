"""Secure sums over HTTP: the coordinator learns the sum, exactly, and nothing is opened of less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from api.secure_sums import known, progress
from api.sweeper import Sweeper
from core.federation.secure_sum import summed
from core.federation.updates import TENSOR
from core.secagg.collector import Collector, TooFew
from core.secagg.messages import Transcript
from core.wire import tensors
from core.wire.jobs import TASK_STEP
from core.wire.messages import LEASE_HEADER, AggregateJob, WorkOrder
from core.wire.secure import SumStep
from tests.api.sums import SECURE, SITES, Site, a_secure_run
from tests.api.support import Coordinator, problem
from tests.api.visitors import visiting


def total_of(coordinator: Coordinator, job: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What the transcript and the masked vectors of a job come to."""
    claimed = AggregateJob.model_validate(job)
    assert claimed.transcript is not None
    read = coordinator.ctx.store.get
    transcript = Transcript.model_validate_json(read(claimed.transcript))
    masked = {each.client: read(each.digest) for each in claimed.updates}
    update, _ = tensors.unpack(summed(transcript, masked, claimed.spec))
    total = Collector.of(transcript, masked).total()
    assert len(update[TENSOR]) == len(total)
    return total


async def audited(coordinator: Coordinator, kind: str) -> list[dict[str, Any]]:
    found = await coordinator.ok("GET", "/v1/events", params={"kind": kind, "limit": 100})
    return list(found["items"])


async def opened(coordinator: Coordinator) -> list[Any]:
    """Openings and transcripts: what could be used to open a sum."""
    return await coordinator.sql(
        "SELECT id::text FROM sum_steps WHERE step = 'open' AND state = 'answered' "
        "UNION ALL SELECT transcript FROM secure_sums WHERE transcript IS NOT NULL"
    )


# --- the way it goes ---


async def test_a_whole_run_of_secure_sums(coordinator: Coordinator) -> None:
    """Sketch, spread, one training round; then the run is completed, and its model is served."""
    sites = await a_secure_run(coordinator, privacy={"sketch_steps": 2, "rounds": 1})
    run = sites.run
    kinds = []
    for number in range(run["rounds_planned"]):
        job = await sites.sums()
        kinds.append(job["kind"])
        parts = [site.contributed[number] for site in sites.all.values()]
        assert (total_of(coordinator, job) == sum(parts)).all()
        assert (await coordinator.round(run, number))["state"] == "published"
    assert kinds[:3] == ["sketch", "spread", "train"]
    shown = await coordinator.ok("GET", f"/v1/runs/{run['id']}")
    assert shown["state"] == "completed"
    ledger = await coordinator.ledger("site-a")
    assert [entry["kind"] for entry in ledger["entries"]] == ["reserve", "commit"] * len(kinds)
    events = [entry["event"] for entry in ledger["entries"] if entry["event"]]
    assert {event["collude"] for event in events} == {1}
    assert {event["mechanism"] for event in events} == {"discrete-gaussian"}
    table = await coordinator.call(
        "GET", f"/v1/clients/{coordinator.clients['site-a']}/ledger.csv", "auditor"
    )
    assert [line.rsplit(",", 1)[-1] for line in table.text.split("\r\n")[:2]] == ["collude", "1"]
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert model["clients"] == []
    assert model["domains"] == {}
    assert {spent["client"] for spent in model["per_client"]} == set(SITES)

    body = {"run": "run-1", "mixture": "neutral", "n": 5, "seed": 1}
    await coordinator.ok("POST", "/synthesize", "scientist", json=body)
    for name in ("site-a", "all-sites"):
        asked = await coordinator.call(
            "POST", "/synthesize", "scientist", json={**body, "mixture": {name: 1.0}}
        )
        told = problem(asked, 422, "unknown-mixture-client", f"mixture.{name}")
        assert "sums are secure" in told["detail"]
    await coordinator.ok("GET", f"/v1/runs/{run['id']}/report", "admin")

    # A replay finds the same sum in what was kept.
    path = f"/v1/runs/{run['id']}/rounds/0/replay"
    await coordinator.ok("POST", path)
    (job_id,) = await coordinator.sql("SELECT id FROM jobs WHERE kind = 'replay'")
    claimed = await coordinator.ok("POST", f"/v1/jobs/{job_id[0]}/claim", "worker")
    await coordinator.ok(
        "POST", f"/v1/jobs/{job_id[0]}/complete", "worker",
        json=coordinator.sum(AggregateJob.model_validate(claimed)),
        headers={LEASE_HEADER: claimed["lease_token"]},
    )  # fmt: skip
    assert not await audited(coordinator, "replay-differs")


async def test_a_founding_client_joins_afterwards_by_a_second_release(
    coordinator: Coordinator,
) -> None:
    """At full local noise, with an event and a charge of its own; then there is its code."""
    sites = await a_secure_run(coordinator, privacy={"rounds": 0})
    run = sites.run
    for _ in range(run["rounds_planned"]):
        await sites.sums()
    before = await coordinator.ledger("site-a")
    await coordinator.join(run, "site-a")
    offered = await sites["site-a"].poll()
    assert offered is not None
    order = offered["order"]
    assert (order["kind"], order.get("sum")) == ("join", None)
    assert "collude" not in order["event"]
    assert order["event"]["mechanism"] == "gaussian"
    assert (await coordinator.send(order)).status_code == 201
    await coordinator.aggregate()
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model")
    assert model["clients"] == ["site-a"]
    after = await coordinator.ledger("site-a")
    assert len(after["entries"]) == len(before["entries"]) + 2
    assert after["epsilon_total"] > before["epsilon_total"]
    body = {"run": "run-1", "n": 5, "seed": 1}
    for mixture in ("neutral", {"site-a": 1.0}):
        await coordinator.ok("POST", "/synthesize", "scientist", json={**body, "mixture": mixture})
    asked = {**body, "mixture": {"site-b": 1.0}}
    found = problem(
        await coordinator.call("POST", "/synthesize", "scientist", json=asked),
        422, "unknown-mixture-client",
    )  # fmt: skip
    assert "site-a" in found["mend"]
    again = await coordinator.call(
        "POST", f"/v1/runs/{run['id']}/joins", json={"clients": ["site-a"]}
    )
    problem(again, 409, "conflict", "clients.0")
    with pytest.raises(Exception, match="has a code"):
        await coordinator.sql(
            "INSERT INTO join_members SELECT run_id, 1, client_id FROM join_members"
        )


async def test_a_founding_client_takes_part_already_while_the_run_is_under_way(
    coordinator: Coordinator,
) -> None:
    sites = await a_secure_run(coordinator)
    answer = await coordinator.call(
        "POST", f"/v1/runs/{sites.run['id']}/joins", json={"clients": ["site-a"]}
    )
    problem(answer, 409, "conflict", "clients.0")


async def test_workers_play_the_part_of_managed_clients(coordinator: Coordinator) -> None:
    """They are told of steps by messages, again while nobody answers."""
    sites = await a_secure_run(coordinator, managed=True)

    async def step_of(name: str) -> SumStep:
        (found,) = await coordinator.sql(
            "SELECT id FROM sum_steps WHERE state = 'asked' AND client_id = :client",
            client=coordinator.clients[name],
        )
        body = await coordinator.ok("GET", f"/v1/secure-steps/{found[0]}", "worker")
        return SumStep.model_validate(body)

    told = await coordinator.messages(TASK_STEP)
    assert len(told) == 4
    assert {str(message.queue) for message in told} == {"train"}
    assert {message.subject for message in told} == {
        row[0] for row in await coordinator.sql("SELECT id FROM sum_steps")
    }
    await coordinator.sql("UPDATE outbox SET sent_at = clock_timestamp()")
    await coordinator.sweep()
    assert len(await coordinator.messages(TASK_STEP)) == 4
    coordinator.pass_time(20)
    for name in SITES[:3]:
        step = await step_of(name)
        assert (await sites[name].put(step, sites[name].answer_of(step))).status_code == 201
    await coordinator.sweep()
    assert len(await coordinator.messages(TASK_STEP)) == 5  # the silent one, again
    step = await step_of("site-d")
    assert (await sites["site-d"].decline(step)).status_code == 204
    gone = await coordinator.call("GET", f"/v1/secure-steps/{step.step_id}", "worker")
    problem(gone, 409, "work-gone")
    await coordinator.sweep()
    assert (await sites.round())["state"] == "shares"
    for name in SITES[:3]:
        step = await step_of(name)
        await sites[name].put(step, sites[name].answer_of(step))
    await coordinator.sweep()
    work = await coordinator.managed_work("site-a")
    order = WorkOrder.model_validate(
        await coordinator.ok("POST", f"/v1/work/{work[0].id}/claim", "worker")
    )
    assert order.sum is not None
    sent = await sites["site-a"].send(order, sites["site-a"].masked(order))
    assert sent.status_code == 201, sent.text


# --- who drops out ---

POINTS = ("keys", "shares", "open", "confirming", "opening")


@pytest.mark.parametrize("point", POINTS)
async def test_one_may_drop_out_at_any_step(coordinator: Coordinator, point: str) -> None:
    """The sum is that of those whose vectors are here, exactly."""
    sites = await a_secure_run(coordinator)
    await sites.upto(point)
    left = SITES[:3]
    while (state := (await sites.round())["state"]) in POINTS:
        await sites.go(left)
        shown = await sites.round()
        if shown["state"] == state:  # the silent one is waited for, and named
            assert "site-d" in shown["why"]
            assert shown["missing_clients"] == ["site-d"]
            coordinator.pass_time(101)
            await coordinator.sweep()
    assert state == "aggregating", (await sites.round())["why"]
    job = await coordinator.aggregate()
    sent = SITES if POINTS.index(point) > POINTS.index("open") else left
    assert {each["client"] for each in job["updates"]} == set(sent)
    parts = [sites[name].contributed[0] for name in sent]
    assert (total_of(coordinator, job) == sum(parts)).all()


@pytest.mark.parametrize("point", POINTS)
async def test_with_too_few_nothing_can_be_opened(coordinator: Coordinator, point: str) -> None:
    sites = await a_secure_run(coordinator)
    await sites.upto(point)
    # Of four two could open, which is what the plan's thresholds say: there one alone answers.
    left = SITES[:1] if point == "opening" else SITES[:2]
    await sites.go(left)
    coordinator.pass_time(101)
    await coordinator.sweep()
    shown = await sites.round()
    assert (shown["state"], await sites.state()) == ("failed", "failed")
    assert "site-d" in shown["why"]
    (told,) = [
        each for each in await audited(coordinator, "round-moved")
        if each["detail"]["state"] == "failed"
    ]  # fmt: skip
    assert told["detail"]["why"] == shown["why"]
    assert not await coordinator.sql("SELECT 1 FROM secure_sums WHERE transcript IS NOT NULL")
    if point != "opening":
        assert await opened(coordinator) == []
        return
    # What one site has said is not enough.
    asked, *_ = await coordinator.sql("SELECT run_id, round_number FROM secure_sums")
    async with coordinator.ctx.database.read() as session:
        fixed = await known.at(session, *asked, "open")
        given = await progress.openings(session, *asked)
    masked = {
        name: coordinator.ctx.store.get(digest)
        for name, digest in await coordinator.sql(
            "SELECT c.name, u.digest FROM updates u JOIN clients c ON c.id = u.client_id"
        )
    }
    transcript = Transcript(
        session=fixed.session, adverts=fixed.roster, sharers=fixed.sharers, openings=given
    )
    with pytest.raises(TooFew):
        Collector.of(transcript, masked).total()


async def test_a_round_begins_with_those_who_have_approved(coordinator: Coordinator) -> None:
    """Who has not said anything is waited for as long as a round may last."""
    names = (*SITES, "site-e")
    await coordinator.enrol(*names)
    sites = {name: Site(coordinator, name) for name in names}
    for site in sites.values():
        await site.register()
    run = await coordinator.run(*names, approved=False, **SECURE)
    await coordinator.approve(run, *names[:3])
    await coordinator.sweep()
    shown = await coordinator.round(run, 0)
    assert (shown["state"], "site-d, site-e" in shown["why"]) == ("draft", True)
    found = await sites["site-a"].poll()
    assert found is None
    await coordinator.approve(run, "site-d")
    coordinator.pass_time(101)
    await coordinator.sweep()
    step = await sites["site-a"].offered()
    assert step.session.sites == SITES
    shown = await coordinator.round(run, 0)
    standings = {each["client"]: each["standing"] for each in shown["clients"]}
    assert standings == {**dict.fromkeys(SITES, "answering"), "site-e": "out"}
    late = await sites["site-e"].poll()
    assert late is not None
    assert late["type"] == "plan"  # it may approve yet, for the rounds that follow


async def test_a_round_of_too_few_approvals_fails_before_it_asks(coordinator: Coordinator) -> None:
    await coordinator.enrol(*SITES)
    for name in SITES:
        await Site(coordinator, name).register()
    run = await coordinator.run(*SITES, approved=False, **SECURE)
    await coordinator.approve(run, "site-a", "site-b")
    coordinator.pass_time(101)
    await coordinator.sweep()
    shown = await coordinator.round(run, 0)
    assert (shown["state"], shown["deadline"]) == ("failed", None)
    assert "2 clients can take part" in shown["why"]
    assert await coordinator.sql("SELECT 1 FROM sum_steps") == []


async def test_who_declines_is_not_waited_for(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    step = await sites["site-d"].offered()
    assert (await sites["site-d"].decline(step, "plan-refused")).status_code == 204
    assert (await sites["site-d"].decline(step)).status_code == 204
    problem(await sites["site-d"].put(step, sites["site-d"].answer_of(step)), 409, "step-closed")
    assert await sites["site-d"].poll() is None
    await sites.answer("keys", SITES[:3])
    shown = await sites.round()
    assert shown["state"] == "shares"
    (told,) = await audited(coordinator, "sum-step-declined")
    assert (told["detail"], told["client_id"]) == (
        {"step": "keys", "code": "plan-refused"}, coordinator.clients["site-d"],
    )  # fmt: skip
    step = await sites["site-a"].answer("shares")
    problem(await sites["site-a"].decline(step), 409, "step-answered")


async def test_who_is_revoked_in_the_middle_is_not_waited_for(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    await sites.answer("keys")
    await coordinator.ok(
        "POST", f"/v1/clients/{coordinator.clients['site-d']}/revoke", json={"why": "gone"}
    )
    await sites.answer("shares", SITES[:3])
    assert (await sites.round())["state"] == "open"
    await sites.work(SITES[:3])
    await sites.answer("confirm", SITES[:3])
    await sites.answer("open", SITES[:3])
    assert (await sites.round())["state"] == "aggregating"
    job = await coordinator.aggregate()
    parts = [sites[name].contributed[0] for name in SITES[:3]]
    assert (total_of(coordinator, job) == sum(parts)).all()


async def test_who_leaves_after_its_vector_counts_and_is_asked_nothing_more(
    coordinator: Coordinator,
) -> None:
    sites = await a_secure_run(coordinator)
    await sites.upto("confirming")
    client = coordinator.clients["site-d"]
    path = f"/v1/runs/{sites.run['id']}/clients/{client}/leave"
    await coordinator.ok("POST", path, json={"why": "no longer"})
    assert await sites["site-d"].poll() is None
    await sites.upto("aggregating", SITES[:3])
    job = await coordinator.aggregate()
    parts = [site.contributed[0] for site in sites.all.values()]
    assert (total_of(coordinator, job) == sum(parts)).all()


async def test_a_pause_holds_up_what_is_paid_for(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    await sites.answer("keys")
    path = f"/v1/runs/{sites.run['id']}"
    await coordinator.ok("POST", f"{path}/pause", json={"seconds": 1000})
    await sites.answer("shares")
    shown = await sites.round()
    assert (shown["state"], "paused" in shown["why"]) == ("shares", True)
    assert await coordinator.sql("SELECT 1 FROM ledger_entries") == []
    coordinator.pass_time(500)
    await coordinator.sweep()
    assert (await sites.round())["state"] == "shares"
    await coordinator.ok("POST", f"{path}/resume")
    await coordinator.sweep()
    assert (await sites.round())["state"] == "open"
    await sites.upto("aggregating")


async def test_the_round_says_who_has_answered_and_until_when(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    await sites["site-a"].answer("keys")
    await coordinator.sweep()
    shown = await sites.round()
    assert {each["client"]: each["standing"] for each in shown["clients"]} == {
        "site-a": "answered", "site-b": "answering", "site-c": "answering",
        "site-d": "answering",
    }  # fmt: skip
    assert shown["quorum"] == 3
    assert shown["missing_clients"] == ["site-b", "site-c", "site-d"]
    assert "1 of 4 clients have sent keys, 3 are needed; missing: site-b" in shown["why"]
    mine = await coordinator.ok("GET", f"/v1/runs/{sites.run['id']}/rounds/0", "site-b")
    assert [each["client"] for each in mine["clients"]] == ["site-b"]
    async with visiting(coordinator, "admin") as visitor:
        page = await visitor.page(f"/runs/{sites.run['id']}")
        assert "have sent keys" in page
        assert "Answers until" in page
        assert "step answered" in page
        assert "round 0 keys, 1 of 4 answers" in await visitor.page("/runs")
    metrics = await coordinator.call("GET", "/metrics", "admin")
    assert 'fhv_rounds{state="keys"} 1.0' in metrics.text


async def test_after_a_start_nobody_is_late_until_the_grace_has_passed(
    coordinator: Coordinator,
) -> None:
    sites = await a_secure_run(coordinator)
    await sites.answer("keys", SITES[:3])
    coordinator.pass_time(40)  # the coordinator was down meanwhile
    settings = coordinator.ctx.settings.model_copy(update={"grace_s": 60.0})
    started = Sweeper(replace(coordinator.ctx, settings=settings))
    await started.sweep()
    assert (await sites.round())["state"] == "keys"
    await sites["site-d"].answer("keys")  # past its deadline, and in time
    await started.sweep()
    assert (await sites.round())["state"] == "shares"
    assert len((await sites["site-d"].offered()).roster) == 4
