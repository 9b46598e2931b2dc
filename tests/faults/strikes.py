"""How a cell runs: reach the moment, strike, let go, start again, wait for the run's end."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests import ledgers
from tests.faults import cells
from tests.faults.cells import Cell
from tests.faults.proxy import Fault
from tests.faults.world import ROUNDS, World
from tests.ledgers import Account, Member
from worker.agent.site import LEDGER_FILE

_REACH_S = 30.0


def open_attempts(member: Member) -> int:
    """How many of this client's attempts are reserved at its site and have no outcome yet."""
    file = member.state / LEDGER_FILE
    if not file.exists() or file.stat().st_size == 0:
        return 0  # the site has only just begun
    with contextlib.closing(sqlite3.connect(file, timeout=10.0)) as ledger:
        if not ledger.execute("PRAGMA user_version").fetchone()[0]:
            return 0
        found: tuple[int] = ledger.execute(
            "SELECT count(*) FROM entry e WHERE kind = 'reserve' AND client = ? AND round > 0 AND"
            " NOT EXISTS (SELECT 1 FROM entry o WHERE o.kind <> 'reserve' AND o.client = e.client"
            " AND o.run_id = e.run_id AND o.round = e.round AND o.attempt = e.attempt)",
            (member.name,),
        ).fetchone()
    return found[0]


def freeze_in_training(world: World, name: str) -> Member:
    """Stop (SIGSTOP) the process between a reservation and its outcome; whose it is.

    Looking and stopping take a moment in which the attempt may end; then the next one will do.
    """
    own = world.members_of(name)
    deadline = time.monotonic() + _REACH_S
    while time.monotonic() < deadline:
        for member in own:
            if open_attempts(member):
                world.freeze(name)
                if open_attempts(member):
                    return member
                world.thaw(name)
        time.sleep(0.001)
    raise TimeoutError(f"{name} was not caught at work")


def reach(world: World, moment: str, party: str, run_id: str, fault: Fault | None) -> None:
    """Until the run has come to this moment."""
    if fault is not None:
        assert fault.reached(_REACH_S), world.situation(run_id)
    elif moment == cells.WORKING:
        freeze_in_training(world, party)
    elif moment == cells.BETWEEN:
        world.wait(
            "a round to be published",
            lambda: True if world.operator.run(run_id)["rounds_published"] else None,
        )


def strike(world: World, process: str) -> Callable[[], None]:
    """Kill it; what starts it again."""
    if process == cells.VALKEY:
        world.broker.crash()
        return world.broker.start
    if process in (cells.POSTGRES, cells.POSTGRES_STOP):
        world.database.crash(signal.SIGKILL if process == cells.POSTGRES else signal.SIGQUIT)
        return world.database.start
    if process == cells.ONE_OF_TWO:
        world.kill(world.main)
        return world.follow_the_other
    name = world.main if process == cells.ALL_COORDINATORS else process
    world.kill(name)
    return lambda: world.start(name)


def run_cell(world: World, cell: Cell) -> Outcome:
    """One run with one fault in it, to its end; what came out, checked."""
    if cell.process == cells.ONE_OF_TWO:
        world.add_coordinator()
    fault = cells.fault_at(cell.moment, cell.party)
    if fault is not None:
        world.proxy.plan(fault)
    early = cell.moment == cells.WAITING
    run_id = "" if early else world.begin(**cell.of_round)
    reach(world, cell.moment, cell.party, run_id, fault)
    again = strike(world, cell.process)
    if fault is not None and cell.process == cell.party == fault.party:
        fault.drop()  # what a dead process had in flight is lost with it
    elif fault is not None:
        fault.forward()
    if cell.moment == cells.WORKING and cell.process != cell.party:
        world.thaw(cell.party)
    again()
    run_id = run_id or world.begin(**cell.of_round)
    return conclude(world, run_id)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: published rounds, and reservations that were spent for nothing."""

    state: str
    why: str
    published: int
    lost: int
    accounts: Mapping[str, Account]


def conclude(
    world: World, run_id: str, *, members: Sequence[Member] = (), seconds: float = 60.0
) -> Outcome:
    """The one checker of every cell: the run ends by itself, and all books agree. ``members``: who
    must have an update in each round (the three of most runs).
    """
    own = list(members) or world.members
    run = world.follow(run_id, seconds)
    if run["state"] == "completed":
        accounts = ledgers.check_completed(world.operator, run_id, own, ROUNDS)
    else:
        assert run["why"]
        accounts = ledgers.check_failed(world.operator, run_id, own)
    ledgers.check_sums(world.database.url, world.store_url, run_id, accounts)
    world.settle()
    return Outcome(
        state=str(run["state"]),
        why=str(run["why"]),
        published=int(run["rounds_published"]),
        lost=ledgers.lost_of(accounts),
        accounts=accounts,
    )
