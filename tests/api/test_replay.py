"""Replays: the same bytes from the same updates, or an alarm; nothing else changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from api.db.run_models import Job, OutboxMessage
from core.errors import DomainError, ObjectCorrupt
from core.federation.aggregate import Aggregated, aggregate
from core.storage import sha256_of
from core.wire import tensors
from core.wire.jobs import TASK_REPLAY
from core.wire.messages import LEASE_HEADER, AggregateJob
from tests.api.support import Coordinator, problem

Summing = Callable[[AggregateJob, Callable[[str], bytes]], Aggregated]
NAMES = ("site-a", "site-b", "site-c")


@pytest.fixture
async def run(coordinator: Coordinator) -> dict[str, Any]:
    """A finished run: round 0 is a sketch, rounds 1 and 2 train."""
    await coordinator.enrol(*NAMES)
    run = await coordinator.run(*NAMES, privacy={"rounds": 2})
    await coordinator.finish(run, *NAMES)
    return run


async def ask(coordinator: Coordinator, run: dict[str, Any], number: int) -> dict[str, Any]:
    path = f"/v1/runs/{run['id']}/rounds/{number}/replay"
    response = await coordinator.call("POST", path)
    assert response.status_code == 202, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["Location"].endswith(made["id"])
    assert (made["state"], made["same"]) == ("waiting", None)
    return made


async def shown(coordinator: Coordinator, made: dict[str, Any]) -> dict[str, Any]:
    path = f"/v1/runs/{made['run_id']}/rounds/{made['round']}/replays/{made['id']}"
    return dict(await coordinator.ok("GET", path, "auditor"))


async def carry_out(
    coordinator: Coordinator, made: dict[str, Any], how: Summing = aggregate
) -> dict[str, Any]:
    """As ``worker.aggregation`` does it: sums, hashes, stores nothing."""
    claimed = await coordinator.ok("POST", f"/v1/jobs/{made['id']}/claim", "worker")
    lease = {LEASE_HEADER: claimed["lease_token"]}
    try:
        result = how(AggregateJob.model_validate(claimed), coordinator.ctx.store.get)
    except DomainError as error:
        failure = {"code": error.code, "detail": error.message}
        path = f"/v1/jobs/{made['id']}/fail"
        await coordinator.ok("POST", path, "worker", json=failure, headers=lease)
        return await shown(coordinator, made)
    named = {
        role: {"role": role, "digest": sha256_of(body), "size": len(body)}
        for role, body in (("frame", result.frame), ("weights", result.weights))
    }
    body = {
        **named,
        "optimiser_digest": sha256_of(result.optimiser),
        "optimiser_size": len(result.optimiser),
    }
    path = f"/v1/jobs/{made['id']}/complete"
    await coordinator.ok("POST", path, "worker", json=body, headers=lease)
    return await shown(coordinator, made)


async def _everything_else(coordinator: Coordinator) -> list[Any]:
    """What a replay must not touch."""
    tables = ("runs", "rounds", "updates", "ledger_entries", "work_items", "objects")
    return [await coordinator.sql(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_round_is_found_again_byte_by_byte(
    coordinator: Coordinator, run: dict[str, Any], number: int
) -> None:
    before = await _everything_else(coordinator)
    made = await ask(coordinator, run, number)
    done = await carry_out(coordinator, made)
    assert (done["state"], done["same"], done["why"]) == ("done", True, "")
    assert [file["found"] for file in done["files"]] == [f["expected"] for f in done["files"]]
    second = await ask(coordinator, run, number)
    assert second["id"] != made["id"]
    assert (await carry_out(coordinator, second))["same"] is True
    await coordinator.sweep()
    assert await _everything_else(coordinator) == before
    kinds = await coordinator.ok("GET", f"/v1/events?run={run['id']}&round={number}&limit=200")
    told = [item["kind"] for item in kinds["items"]][-6:]
    assert told == ["replay-asked", "job-claimed", "job-completed"] * 2


def backwards(job: AggregateJob, read: Callable[[str], bytes]) -> Aggregated:
    """The known wrong version: updates in another order than that of the run."""
    return aggregate(job.model_copy(update={"updates": job.updates[::-1]}), read)


def other_optimiser(job: AggregateJob, read: Callable[[str], bytes]) -> Aggregated:
    optimiser = job.spec.plan.optimiser
    changed = optimiser.model_copy(update={"learning_rate": optimiser.learning_rate * 2})
    plan = job.spec.plan.model_copy(update={"optimiser": changed})
    return aggregate(
        job.model_copy(update={"spec": job.spec.model_copy(update={"plan": plan})}), read
    )


def one_bit(job: AggregateJob, read: Callable[[str], bytes]) -> Aggregated:
    made = aggregate(job, read)
    content, metadata = tensors.unpack(made.weights)
    phi = np.array(content["phi"])
    phi[0] = np.nextafter(phi[0], np.float32(np.inf))
    return dataclasses.replace(made, weights=tensors.pack({**content, "phi": phi}, metadata))


@pytest.mark.parametrize(
    ("number", "wrong", "files"),
    [
        (0, backwards, {"frame"}),
        (1, other_optimiser, {"weights", "optimiser"}),
        (2, one_bit, {"weights"}),
    ],
)
async def test_other_sums_are_an_alarm_and_change_nothing(
    coordinator: Coordinator, run: dict[str, Any], number: int, wrong: Summing, files: set[str]
) -> None:
    before = await _everything_else(coordinator)
    done = await carry_out(coordinator, await ask(coordinator, run, number), wrong)
    assert (done["state"], done["same"]) == ("done", False)
    differing = {file["file"] for file in done["files"] if file["found"] != file["expected"]}
    assert differing >= files
    await coordinator.sweep()
    assert await _everything_else(coordinator) == before
    found = await coordinator.ok("GET", f"/v1/events?kind=replay-differs&run={run['id']}")
    (told,) = found["items"]
    assert told["detail"]["weights"] in {file["found"] for file in done["files"]}


async def test_what_cannot_be_replayed_says_why_and_since_when(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    open_run = await coordinator.run(*NAMES, name="run-2")
    path = f"/v1/runs/{open_run['id']}/rounds/0/replay"
    refused = problem(await coordinator.call("POST", path), 409, "not-replayable")
    assert (refused["reason"], "is open" in refused["detail"]) == ("not-published", True)
    path = f"/v1/runs/{run['id']}/rounds/{{}}/replay"
    problem(await coordinator.call("POST", path.format(7)), 404, "not-found")
    unknown = f"/v1/runs/{run['id']}/rounds/1/replays/{uuid4()}"
    problem(await coordinator.call("GET", unknown), 404, "not-found")
    made = await ask(coordinator, run, 1)
    elsewhere = f"/v1/runs/{run['id']}/rounds/2/replays/{made['id']}"
    problem(await coordinator.call("GET", elsewhere), 404, "not-found")
    client = coordinator.clients["site-a"]
    await coordinator.ok("DELETE", f"/v1/clients/{client}/updates", "site-a")
    refused = problem(await coordinator.call("POST", path.format(1)), 409, "not-replayable")
    assert (refused["reason"], refused["erased_because"]) == ("erased", "requested")
    assert refused["since"]
    # A replay that was under way finds the bytes gone; no attempt more, no model less.
    done = await carry_out(coordinator, made)
    assert (done["state"], done["same"]) == ("failed", None)
    assert done["why"].startswith("object-missing")
    assert (await coordinator.ok("GET", f"/v1/runs/{run['id']}"))["state"] == "completed"


def _file(coordinator: Coordinator, digest: str) -> Path:
    root = Path(coordinator.ctx.settings.object_store_url.removeprefix("file://"))
    value = digest.removeprefix("sha256:")
    return root / "sha256" / value[:2] / value


async def test_a_store_that_lost_or_altered_bytes_is_noticed(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    rows = await coordinator.sql("SELECT digest FROM updates WHERE round_number = 1 ORDER BY id")
    altered = _file(coordinator, rows[0][0])
    body = bytearray(altered.read_bytes())
    body[-1] ^= 1
    altered.write_bytes(bytes(body))
    with pytest.raises(ObjectCorrupt):
        coordinator.ctx.store.get(rows[0][0])
    done = await carry_out(coordinator, await ask(coordinator, run, 1))
    assert (done["state"], done["same"]) == ("failed", None)
    assert done["why"].startswith("object-corrupt")
    altered.unlink()
    path = f"/v1/runs/{run['id']}/rounds/1/replay"
    refused = problem(await coordinator.call("POST", path), 409, "not-replayable")
    assert (refused["reason"], rows[0][0] in refused["detail"]) == ("object-missing", True)


async def test_a_worker_that_dies_in_a_replay_is_replaced(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    made = await ask(coordinator, run, 1)
    await coordinator.ok("POST", f"/v1/jobs/{made['id']}/claim", "worker")  # and is killed
    assert (await shown(coordinator, made))["state"] == "running"
    await coordinator.sql("UPDATE outbox SET sent_at = now()")
    coordinator.pass_time(121)
    await coordinator.sweep()
    again = await shown(coordinator, made)
    assert (again["state"], again["why"]) == ("waiting", "the worker's lease ended")
    coordinator.pass_time(3)
    await coordinator.sweep()
    messages = await coordinator.rows(OutboxMessage, OutboxMessage.subject == UUID(made["id"]))
    assert [message.task for message in messages] == [TASK_REPLAY] * 2
    done = await carry_out(coordinator, made)
    assert (done["state"], done["same"], done["attempt"]) == ("done", True, 2)


async def test_a_replay_does_not_pass_for_the_job_of_a_round(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    """Its round stays published, its run goes on, and a join after it has a job of its own."""
    made = await ask(coordinator, run, 2)
    await coordinator.enrol("late")
    await coordinator.join(run, "late")
    await coordinator.work("late")
    await coordinator.sweep()
    jobs = await coordinator.rows(Job, Job.round_number == 3)
    assert [job.kind for job in jobs] == ["aggregate"]
    await coordinator.aggregate()
    assert (await coordinator.round(run, 3))["state"] == "published"
    assert (await carry_out(coordinator, made))["same"] is True
    assert (await carry_out(coordinator, await ask(coordinator, run, 3)))["same"] is True


async def test_the_same_request_is_one_replay_and_can_be_waited_for(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    path, key = f"/v1/runs/{run['id']}/rounds/1/replay", {"Idempotency-Key": "once"}
    first = await coordinator.ok("POST", path, headers=key)
    done = await carry_out(coordinator, first)
    again = await coordinator.call("POST", path, headers=key)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == done
    other = await coordinator.call("POST", path.replace("/1/", "/2/"), headers=key)
    problem(other, 409, "idempotency-key-reused")
    waited = await coordinator.ok("POST", f"{path}?wait=0.2")
    assert waited["state"] == "waiting"
