"""Faults that kill nobody: slow and broken transfers, doubled ones, full disks, clocks, silence."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from celery import Celery

from core.wire.jobs import QUEUE_TRAIN, TASK_TRAIN
from tests.faults.cells import (
    CLAIMED,
    DOWNLOADING,
    OFFERED,
    ORDERED,
    SENDING,
    WORKING,
    fault_at,
)
from tests.faults.proxy import CLAIM_WORK, OBJECT, PUT_UPDATE, RENEW_WORK, Fault
from tests.faults.strikes import Outcome, conclude, freeze_in_training
from tests.faults.world import AGENT, CLOCK, SUM, TRAIN, World
from worker.agent.site import LEDGER_FILE

FAIL_WORK = r"POST /v1/work/[^/]+/fail"
FAIL_JOB = r"POST /v1/jobs/[^/]+/fail"
_DAY_S = 86_400
_LONG = {"lease_s": 20.0}
_SHORT = {"lease_s": 5.0}
_UPLOAD_LEASE_S = 3.0


@dataclass(frozen=True)
class Condition:
    """One fault at one moment and how its run must end."""

    what: str
    moment: str
    text: str
    run: Callable[[World], Outcome]
    state: str = "completed"
    lost: int = 0
    at_most: bool = False

    @property
    def id(self) -> str:
        return f"{self.what}-{self.moment}"

    @property
    def needs_disk(self) -> bool:
        """Does it fill a file system of its own?"""
        return "full" in self.what


def _caught(world: World, fault: Fault, **of_round: float) -> str:
    world.proxy.plan(fault)
    run_id = world.begin(**of_round)
    assert fault.reached(), world.situation(run_id)
    return run_id


def _planned(moment: str, party: str) -> Fault:
    fault = fault_at(moment, party)
    assert fault is not None
    return fault


def _until_lost(world: World, run_id: str, name: str) -> None:
    """Until the coordinator has given up an attempt of this client."""
    client_id = world.member(name).client_id

    def look() -> bool | None:
        entries = world.operator.client_ledger(client_id)["entries"]
        return True if any(e["kind"] == "lost" and e["run_id"] == run_id for e in entries) else None

    world.wait(f"an attempt of {name} to be lost", look, state=lambda: world.situation(run_id))


def _until_seen(
    world: World, party: str, pattern: str, before: int, accept: Callable[[int], bool]
) -> None:
    """Until the coordinator has given such an answer since there were ``before`` answers."""
    world.wait(
        f"an answer to {pattern}",
        lambda: True if any(map(accept, world.proxy.seen(party, pattern)[before:])) else None,
    )


# --- transfers ---


def slow_upload(world: World) -> Outcome:
    """It takes three leases: renewals keep the attempt alive meanwhile."""
    before = len(world.proxy.seen(AGENT, RENEW_WORK))
    seconds = 3 * _UPLOAD_LEASE_S
    fault = Fault(AGENT, PUT_UPDATE, "slow", seconds=seconds, path_has="/rounds/1/")
    outcome = conclude(world, _caught(world, fault, lease_s=_UPLOAD_LEASE_S))
    assert fault.statuses == [201]
    assert world.proxy.seen(AGENT, RENEW_WORK)[before:].count(200) >= 3
    return outcome


def broken_upload(world: World) -> Outcome:
    """The connection breaks in the middle of the body; the same bytes are sent again."""
    before = len(world.proxy.seen(AGENT, PUT_UPDATE))
    fault = Fault(AGENT, PUT_UPDATE, "cut-request", path_has="/rounds/1/")
    outcome = conclude(world, _caught(world, fault, **_LONG))
    assert fault.statuses == []
    assert world.proxy.seen(AGENT, PUT_UPDATE)[before:] == [201] * outcome.published
    return outcome


def doubled_upload(world: World) -> Outcome:
    """The same PUT arrives twice at once: one of them counts, both get the receipt."""
    fault = Fault(AGENT, PUT_UPDATE, "twice", path_has="/rounds/1/")
    outcome = conclude(world, _caught(world, fault, **_LONG))
    assert sorted(fault.statuses) == [200, 201]
    return outcome


def broken_download(world: World) -> Outcome:
    """Half of a model arrives; it is asked for again before anything is spent."""
    fault = Fault(AGENT, OBJECT, "cut-answer")
    return conclude(world, _caught(world, fault, **_LONG))


def doubled_message(world: World) -> Outcome:
    """A message of the queue train comes twice: the second claim of its row is refused."""
    before = len(world.proxy.seen(TRAIN, CLAIM_WORK))
    fault = _planned(ORDERED, TRAIN)
    run_id = _caught(world, fault, **_LONG)
    work_id = fault.line.split("/")[-2]
    with Celery("again", broker=world.broker.url, set_as_current=False) as celery:
        for _ in range(2):
            celery.send_task(TASK_TRAIN, args=[work_id], queue=QUEUE_TRAIN, ignore_result=True)
    fault.forward()
    outcome = conclude(world, run_id)
    _until_seen(world, TRAIN, CLAIM_WORK, before, lambda status: status == 409)
    return outcome


# --- silence ---


def _frozen(world: World, name: str) -> Outcome:
    run_id = world.begin(**_SHORT)
    member = freeze_in_training(world, name)
    _until_lost(world, run_id, member.name)
    world.thaw(name)
    outcome = conclude(world, run_id)
    # The attempt that was given up was executed after all: it is among the lost, not the commits.
    account = outcome.accounts[member.name]
    assert len(account.executed - account.committed) == 1
    return outcome


def frozen_agent(world: World) -> Outcome:
    """SIGSTOP for longer than the lease: what it sends afterwards is refused."""
    return _frozen(world, AGENT)


def frozen_worker(world: World) -> Outcome:
    return _frozen(world, TRAIN)


def cut_off_agent(world: World) -> Outcome:
    """The network is away for longer than the lease; then work comes again by itself."""
    fault = _planned(SENDING, AGENT)
    run_id = _caught(world, fault, **_SHORT)
    world.proxy.cut_off(AGENT)
    fault.drop()
    _until_lost(world, run_id, world.alone.name)
    world.proxy.let_in(AGENT)
    return conclude(world, run_id)


# --- full disks ---


def full_store_for_an_update(world: World) -> Outcome:
    """The coordinator cannot store an update: it is not accepted, and sent again."""
    before = len(world.proxy.seen(AGENT, PUT_UPDATE))
    fault = _planned(SENDING, AGENT)
    run_id = _caught(world, fault, **_LONG)
    world.store.fill()
    fault.forward()
    try:
        _until_seen(world, AGENT, PUT_UPDATE, before, lambda status: status == 503)
    finally:
        world.store.free()
    return conclude(world, run_id)


def full_store_for_a_sum(world: World) -> Outcome:
    """The sum cannot be stored: its job is given back and done again."""
    before = len(world.proxy.seen(SUM, FAIL_JOB))
    fault = _planned(CLAIMED, SUM)
    run_id = _caught(world, fault, **_LONG)
    world.store.fill()
    fault.forward()
    try:
        _until_seen(world, SUM, FAIL_JOB, before, lambda status: status == 204)
    finally:
        world.store.free()
    return conclude(world, run_id)


def full_store_for_good(world: World) -> Outcome:
    """Nobody frees it: the round's deadline ends the run, and says who is missing."""
    fault = _planned(SENDING, AGENT)
    run_id = _caught(world, fault, lease_s=20.0, deadline_s=8.0)
    alone = world.alone.name

    def others_are_in() -> bool | None:
        return True if world.operator.round(run_id, 1)["missing_clients"] == [alone] else None

    world.wait("the others' updates", others_are_in, state=lambda: world.situation(run_id))
    world.store.fill()
    fault.forward()
    try:
        run = world.follow(run_id)
    finally:
        world.store.free()
    assert "deadline" in run["why"]
    assert alone in run["why"]
    return conclude(world, run_id)


def _empty_logs(world: World, name: str) -> None:
    """SQLite's write-ahead log keeps its size, and what fits into it needs no room on the disk.
    From an empty one on, every write does.
    """
    for state in {each.state for each in world.members_of(name)}:
        with contextlib.closing(sqlite3.connect(state / LEDGER_FILE, timeout=10.0)) as ledger:

            def emptied(ledger: sqlite3.Connection = ledger) -> bool | None:
                (busy, *_) = ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return None if busy else True

            world.wait("the site's ledger to be at rest", emptied)


def _full_site(world: World, name: str, moment: str) -> Outcome:
    # Its ledger exists after one run.
    conclude(world, world.begin(**_LONG))
    _empty_logs(world, name)
    before = len(world.proxy.seen(name, FAIL_WORK))
    disk = world.sites[name]
    if moment == ORDERED:
        fault = _planned(ORDERED, name)
        run_id = _caught(world, fault, **_LONG)
        disk.fill()
        fault.forward()
    else:
        run_id = world.begin(**_LONG)
        freeze_in_training(world, name)
        disk.fill()
        world.thaw(name)
    try:
        _until_seen(world, name, FAIL_WORK, before, lambda status: status == 204)
    finally:
        disk.free()
    return conclude(world, run_id)


def full_agent_before_consenting(world: World) -> Outcome:
    """The site cannot keep its decision, so it says nothing; once it can, it is asked again."""
    conclude(world, world.begin(**_LONG))
    _empty_logs(world, AGENT)
    log = world.folder / "logs" / f"{AGENT}.log"
    before = log.read_text().count("site_not_usable")
    fault = _planned(OFFERED, AGENT)
    run_id = _caught(world, fault, **_LONG)
    world.sites[AGENT].fill()
    fault.forward()
    try:
        world.wait(
            "the agent to notice",
            lambda: True if log.read_text().count("site_not_usable") > before else None,
        )
    finally:
        world.sites[AGENT].free()
    return conclude(world, run_id)


def full_agent_before_reserving(world: World) -> Outcome:
    """The site cannot write its ledger: it touches no data and gives the work back."""
    return _full_site(world, AGENT, ORDERED)


def full_worker_before_reserving(world: World) -> Outcome:
    return _full_site(world, TRAIN, ORDERED)


def full_agent_in_training(world: World) -> Outcome:
    """The site has reserved and cannot write its result: the attempt is lost, not sent."""
    return _full_site(world, AGENT, WORKING)


def full_worker_in_training(world: World) -> Outcome:
    return _full_site(world, TRAIN, WORKING)


# --- clocks ---


def _clock(world: World, name: str, seconds: int) -> Outcome:
    file = world.folder / "clock"
    file.write_text("0")
    world.kill(name)
    world.start(name, PYTHONPATH=str(CLOCK), FHV_TEST_CLOCK=str(file))
    try:
        run_id = world.begin(**_LONG)
        freeze_in_training(world, name)
        file.write_text(str(seconds))
        world.thaw(name)
        return conclude(world, run_id)
    finally:
        world.kill(name)
        world.start(name)


def agent_ahead(world: World) -> Outcome:
    """Its clock jumps a day ahead in mid-training. Deadlines are the coordinator's: no effect."""
    return _clock(world, AGENT, _DAY_S)


def agent_behind(world: World) -> Outcome:
    return _clock(world, AGENT, -_DAY_S)


def worker_ahead(world: World) -> Outcome:
    return _clock(world, TRAIN, _DAY_S)


CONDITIONS = (
    Condition("slow-upload", SENDING, "an update takes three leases to arrive", slow_upload),
    Condition("broken-upload", SENDING, "the connection breaks inside an update", broken_upload),
    Condition("doubled-upload", SENDING, "an update arrives twice at once", doubled_upload),
    Condition("broken-download", DOWNLOADING, "half of a model arrives", broken_download),
    Condition("doubled-message", ORDERED, "a Celery message comes three times", doubled_message),
    Condition(
        "frozen-agent", WORKING, "the agent is stopped beyond its lease", frozen_agent, lost=1
    ),
    Condition(
        "frozen-worker", WORKING, "the train worker is stopped beyond its lease", frozen_worker,
        lost=1,
    ),
    Condition(
        "agent-cut-off", SENDING, "no network at a site for longer than its lease", cut_off_agent,
        lost=1,
    ),
    Condition(
        "store-full", SENDING, "the coordinator's disk is full, then freed",
        full_store_for_an_update,
    ),
    Condition(
        "store-full", CLAIMED, "the coordinator's disk is full, then freed", full_store_for_a_sum
    ),
    Condition(
        "store-full-for-good", SENDING, "the coordinator's disk is full and stays so",
        full_store_for_good, state="failed", lost=1,
    ),
    Condition(
        "agent-disk-full", OFFERED, "the disk of an agent's site is full, then freed",
        full_agent_before_consenting,
    ),
    Condition(
        "agent-disk-full", ORDERED, "the disk of an agent's site is full, then freed",
        full_agent_before_reserving, lost=3, at_most=True,
    ),
    Condition(
        "agent-disk-full", WORKING, "the disk of an agent's site is full, then freed",
        full_agent_in_training, lost=3, at_most=True,
    ),
    Condition(
        "worker-disk-full", ORDERED, "the disk of a train worker is full, then freed",
        full_worker_before_reserving, lost=6, at_most=True,
    ),
    Condition(
        "worker-disk-full", WORKING, "the disk of a train worker is full, then freed",
        full_worker_in_training, lost=6, at_most=True,
    ),
    Condition("agent-clock-ahead", WORKING, "the agent's clock jumps a day ahead", agent_ahead),
    Condition("agent-clock-back", WORKING, "the agent's clock jumps a day back", agent_behind),
    Condition("worker-clock-ahead", WORKING, "the worker's clock jumps a day ahead", worker_ahead),
)  # fmt: skip
