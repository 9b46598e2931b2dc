"""The fault matrix: which process dies at which point of the protocol, and what then comes out.

A point of the protocol is a request, or its answer, in the hands of the fault proxy; so a cell
hits the same instruction of the same process every time. What it cannot say exactly (an attempt
may or may not be lost, by where a lease ends) it says as "at most".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.faults.proxy import (
    CLAIM_JOB,
    CLAIM_WORK,
    COMPLETE_JOB,
    OBJECT,
    PLANS,
    POLL,
    PUT_UPDATE,
    Fault,
)
from tests.faults.world import AGENT, LEASE_S, SUM, TRAIN

# --- rows: what dies ---

VALKEY, POSTGRES, POSTGRES_STOP = "valkey", "postgres", "postgres-stop"
ONE_OF_TWO = "one-of-two-coordinators"
ALL_COORDINATORS = "coordinator"

PROCESSES = {
    ALL_COORDINATORS: "coordinator, kill -9, started again",
    ONE_OF_TWO: "one of two coordinators behind one database, kill -9, not started again",
    TRAIN: "Celery worker of the queue train, kill -9, started again",
    SUM: "Celery worker of the queue coordinator, kill -9, started again",
    AGENT: "site agent, kill -9, started again",
    VALKEY: "Valkey, kill -9, started again empty: all messages are lost",
    POSTGRES: "Postgres, kill -9 of its postmaster, started again",
    POSTGRES_STOP: "Postgres, immediate stop (SIGQUIT), started again",
}

# --- columns: when ---

WAITING, OFFERED = "waiting", "offered"
ORDERED, DOWNLOADING, WORKING = "ordered", "downloading", "training"
SENDING, COUNTED = "sending", "counted"
CLAIMED, SUMMED, SUM_COUNTED, BETWEEN = "sum-claimed", "sum-made", "sum-counted", "between-rounds"

MOMENTS = {
    WAITING: "nobody has work",
    OFFERED: "a plan was put before the site, which has not read it",
    ORDERED: "an order was answered, the site has not read it",
    DOWNLOADING: "a model was answered, the site has not read it",
    WORKING: "the site has reserved in its ledger and trains",
    SENDING: "the update is committed at the site and on its way",
    COUNTED: "the update counts, the site has not read the receipt",
    CLAIMED: "the sum was claimed, its worker has not read the job",
    SUMMED: "the sum is stored, the coordinator has not heard of it",
    SUM_COUNTED: "the sum counts, its worker has not read the answer",
    BETWEEN: "a round is published, the next one begins",
}


def fault_at(moment: str, party: str) -> Fault | None:
    """The request at which this moment is; None where none is held."""
    claim, offer = (CLAIM_WORK, PLANS) if party == TRAIN else (POLL, POLL)
    return {
        OFFERED: Fault(party, offer, "hold-after", answer_has=b'"plan_id"'),
        ORDERED: Fault(party, claim, "hold-after", answer_has=b'"lease_token"'),
        DOWNLOADING: Fault(party, OBJECT, "hold-after"),
        SENDING: Fault(party, PUT_UPDATE, "hold-before", path_has="/rounds/1/"),
        COUNTED: Fault(party, PUT_UPDATE, "hold-after", path_has="/rounds/1/"),
        CLAIMED: Fault(SUM, CLAIM_JOB, "hold-after"),
        SUMMED: Fault(SUM, COMPLETE_JOB, "hold-before"),
        SUM_COUNTED: Fault(SUM, COMPLETE_JOB, "hold-after"),
    }.get(moment)


@dataclass(frozen=True)
class Cell:
    """One process, one moment. ``lost``: reservations spent for nothing, or "at most" so many."""

    process: str
    moment: str
    party: str  # whose request marks the moment
    lost: int = 0
    at_most: bool = False
    of_round: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.process}-{self.moment}"

    @property
    def always(self) -> bool:
        """Whether every run of the tests plays it. What makes no difference to a server at most
        moments is played at the most telling ones.
        """
        return self.moment in _TELLING.get(self.process, tuple(MOMENTS))


# Long enough that who is started again finds its lease alive.
_LONG = {"lease_s": 20.0}
# A worker that died with a claim tells nobody: only the end of its lease does.
_SHORT = {"lease_s": LEASE_S}


# Where a process has nothing to do with a moment it would be killed as idle as in "waiting".
_SITE = (WAITING, OFFERED, ORDERED, DOWNLOADING, WORKING, SENDING, COUNTED, CLAIMED, BETWEEN)
_OWN_MOMENTS = {
    TRAIN: _SITE,
    AGENT: _SITE,
    SUM: (WAITING, SENDING, CLAIMED, SUMMED, SUM_COUNTED, BETWEEN),
    POSTGRES_STOP: (SENDING, COUNTED, SUM_COUNTED),  # to clients it is the same as kill -9
}


def _cells() -> tuple[Cell, ...]:
    cells = []
    for process in PROCESSES:
        party = TRAIN if process in (TRAIN, VALKEY) else AGENT
        for moment in _OWN_MOMENTS.get(process, tuple(MOMENTS)):
            lost, of_round, at_most = 0, _LONG, False
            if process in (TRAIN, AGENT) and moment == WORKING:
                lost = 1
            if process == TRAIN and moment in (ORDERED, DOWNLOADING):
                lost, of_round = 1, _SHORT
            if process in (TRAIN, AGENT) and moment == BETWEEN:
                lost, at_most = 1, True  # no request is held: it may have begun the next round
            cells.append(Cell(process, moment, party, lost, at_most, of_round))
    return tuple(cells)


_TELLING = {
    ALL_COORDINATORS: (OFFERED, SENDING, COUNTED, CLAIMED, SUM_COUNTED),
    ONE_OF_TWO: (ORDERED, COUNTED, CLAIMED),
    VALKEY: (ORDERED, CLAIMED),
    POSTGRES: (WORKING, SENDING, SUMMED),
}
CELLS = _cells()
