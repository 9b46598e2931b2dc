"""Secure sums in the fault matrix: processes that die in them, and a site that falls silent."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from core.federation.secure_plan import SecurePlan
from tests import ledgers
from tests.faults.cells import ALL_COORDINATORS, ONE_OF_TWO, POSTGRES, VALKEY
from tests.faults.conditions import Condition
from tests.faults.proxy import PUT_STEP, PUT_UPDATE, Fault
from tests.faults.strikes import Outcome, conclude, freeze_in_training, strike
from tests.faults.world import AGENT, TRAIN, World
from tests.ledgers import Account, Member
from worker.agent.site import LEDGER_FILE

TERMS = SecurePlan(drop=0, collude=1, step_s=30.0)
_LONG = {"lease_s": 20.0}
NOTHING = Account(set(), set(), set(), set())
_SHARES = b'"shares":['
_STEP_S = 3.0  # of a site that is given up

# --- columns: when ---

KEYS, SHARES, MASKING = "keys-counted", "shares-sending", "vector-making"
SENDING, COUNTED, OPENING = "vector-sending", "vector-counted", "opening-sending"

MOMENTS = {
    KEYS: "the site's keys count, it has not read the receipt",
    SHARES: "the shares are kept at the site and on their way",
    MASKING: "the site has reserved in its ledger and makes its vector",
    SENDING: "the masked vector is committed at the site and on its way",
    COUNTED: "the masked vector counts, the site has not read the receipt",
    OPENING: "the site's opening is kept and on its way",
}


def fault_at(moment: str, party: str) -> Fault | None:
    """The request at which this moment is; None where none is held."""
    return {
        KEYS: Fault(party, PUT_STEP, "hold-after", body_has=b'"advert":{'),
        SHARES: Fault(party, PUT_STEP, "hold-before", body_has=_SHARES),
        SENDING: Fault(party, PUT_UPDATE, "hold-before", path_has="/rounds/1/"),
        COUNTED: Fault(party, PUT_UPDATE, "hold-after", path_has="/rounds/1/"),
        OPENING: Fault(party, PUT_STEP, "hold-before", body_has=b'"opening":{'),
    }.get(moment)


# --- rows: what dies ---

PROCESSES = (ALL_COORDINATORS, ONE_OF_TWO, TRAIN, AGENT, VALKEY, POSTGRES)
# The train worker answers with the agent's code; what differs is how it is asked. The others are
# played where the document is written (``make fault-matrix``).
_ALWAYS = {
    AGENT: tuple(MOMENTS),
    TRAIN: (SENDING,),
    ALL_COORDINATORS: (KEYS, OPENING),
    POSTGRES: (OPENING,),
}


@dataclass(frozen=True)
class SecureCell:
    """One process, one moment of a secure sum. ``lost``: reservations spent for nothing. There is
    none after the masking: a session has one vector of each client, sent again until it counts.
    """

    process: str
    moment: str
    lost: int = 0
    at_most: bool = False

    @property
    def id(self) -> str:
        return f"secure-{self.process}-{self.moment}"

    @property
    def party(self) -> str:
        """Whose request marks the moment."""
        return TRAIN if self.process in (TRAIN, VALKEY) else AGENT

    @property
    def always(self) -> bool:
        return self.moment in _ALWAYS.get(self.process, ())


# Whoever makes no vector is killed idle then, as in the plain matrix' "training".
CELLS = tuple(
    SecureCell(process, moment, lost=int(moment == MASKING))
    for process in PROCESSES
    for moment in MOMENTS
    if moment != MASKING or process in (TRAIN, AGENT)
)


def run_cell(world: World, cell: SecureCell) -> Outcome:
    """One run of secure sums with one fault in it, to its end; what came out, checked."""
    if cell.process == ONE_OF_TWO:
        world.add_coordinator()
    fault = fault_at(cell.moment, cell.party)
    if fault is not None:
        world.proxy.plan(fault)
    run_id = world.begin(TERMS, **_LONG)
    if fault is None:
        freeze_in_training(world, cell.party)
    else:
        assert fault.reached(), world.situation(run_id)
    again = strike(world, cell.process)
    if fault is not None and cell.process == fault.party:
        fault.drop()  # what a dead process had in flight is lost with it
    elif fault is not None:
        fault.forward()
    again()
    return concluded(world, run_id, world.members)


def concluded(world: World, run_id: str, members: Sequence[Member]) -> Outcome:
    """As of any run; and whatever was said more than once was the same each time."""
    outcome = conclude(world, run_id, members=members)
    said = {**world.proxy.put("/v1/secure-steps/"), **world.proxy.put(f"/v1/runs/{run_id}/")}
    assert said
    assert [path for path, bodies in said.items() if len(bodies) > 1] == []
    for member in members:
        executed = sorted(number for number, _ in outcome.accounts[member.name].executed)
        assert executed == _masked(member, run_id), "one vector of each session, never two"
        assert len(set(executed)) == len(executed)
    return outcome


def _masked(member: Member, run_id: str) -> list[int]:
    """Rounds of the run in which this client's site has masked a vector, in its own words."""
    with contextlib.closing(sqlite3.connect(member.state / LEDGER_FILE, timeout=10.0)) as ledger:
        rows = ledger.execute(
            "SELECT round FROM sum_state WHERE masked AND run_id = ? AND client = ? ORDER BY round",
            (run_id, member.name),
        ).fetchall()
    return [row[0] for row in rows]


# --- a site falls silent ---


def _silent(world: World, members: Sequence[Member], drop: int) -> Outcome:
    """The agent is stopped while its shares are on their way, until the run has ended."""
    fault = world.proxy.plan(Fault(AGENT, PUT_STEP, "hold-before", body_has=_SHARES))
    terms = SecurePlan(drop=drop, collude=1, step_s=_STEP_S)
    run_id = world.begin(terms, members, **_LONG)
    assert fault.reached(), world.situation(run_id)
    world.freeze(AGENT)
    try:
        run = world.follow(run_id)
        alone = world.alone
        assert ledgers.account_of(world.operator, run_id, alone) == NOTHING, "it was asked for none"
        others = [each for each in members if each.name != alone.name]
        if run["state"] == "failed":
            assert alone.name in run["why"]
            assert not [each.name for each in others if each.name in run["why"]]
    finally:
        world.thaw(AGENT)
    fault.forward()
    outcome = concluded(world, run_id, others)
    world.wait("what was too late to be refused", lambda: fault.statuses or None)
    assert fault.statuses == [409]
    return outcome


def silent_site_that_may_be_missing(world: World) -> Outcome:
    """One of four may be missing: the sums are those of the other three."""
    return _silent(world, world.everybody, drop=1)


def silent_site_of_which_all_are_needed(world: World) -> Outcome:
    """Nobody may be missing: the run fails, says who was, and nothing was charged to anybody."""
    outcome = _silent(world, world.members, drop=0)
    assert all(each == NOTHING for each in outcome.accounts.values())
    return outcome


CONDITIONS = (
    Condition(
        "secure-agent-silent", SHARES,
        "one of four sites, of which one may be missing, is stopped beyond a step's time",
        silent_site_that_may_be_missing,
    ),
    Condition(
        "secure-agent-silent-needed", SHARES,
        "one of three sites, of which none may be missing, is stopped beyond a step's time",
        silent_site_of_which_all_are_needed, state="failed",
    ),
)  # fmt: skip
