"""The words of a round: its states and events, where each client stands, what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class RoundState(StrEnum):
    DRAFT = "draft"
    KEYS = "keys"  # of a secure sum: clients send keys
    SHARES = "shares"  # of a secure sum: they share their secrets
    OPEN = "open"
    CONFIRMING = "confirming"  # of a secure sum: they sign whose vectors are to be summed
    OPENING = "opening"  # of a secure sum: they give the shares that open it
    CLOSING = "closing"
    AGGREGATING = "aggregating"
    PUBLISHED = "published"
    FAILED = "failed"
    ABANDONED = "abandoned"


TERMINAL = frozenset({RoundState.PUBLISHED, RoundState.FAILED, RoundState.ABANDONED})


class RoundEvent(StrEnum):
    START = "start"  # the previous round is published, or the run was started
    UPDATE = "update"  # a well-formed update arrives
    TICK = "tick"  # time passes, or a client's standing changed
    AGGREGATED = "aggregated"  # the worker stored the next model
    AGGREGATION_FAILED = "aggregation-failed"  # for good: no attempts are left
    ABANDON = "abandon"  # the operator stops the run


class Standing(StrEnum):
    """Where one client is in the round."""

    ASKED = "asked"  # its site has not said yet whether it approves of the plan
    WAITING = "waiting"  # an order is ready (or backs off); nobody has claimed it
    LEASED = "leased"  # claimed; the lease runs until ``until``
    ACCEPTED = "accepted"  # its update counts
    LOST = "lost"  # no attempt yet, or the last one is spent; another may be issued
    HELD = "held"  # in quarantine; an administrator may release it
    ANSWERING = "answering"  # asked for a step of a secure sum
    ANSWERED = "answered"  # it has given its answer
    OUT = "out"  # no further attempt in this round (``why`` says the reason)


@dataclass(frozen=True)
class Member:
    client: str
    standing: Standing
    attempt: int = 0
    until: datetime | None = None
    why: str = ""


@dataclass(frozen=True)
class SumFacts:
    """Of a round whose sum is secure: what the present step's clients (names) have said.

    ``clients``: how many the session asked, 0 before there is one. ``gone``: asked, and no answer
    can come any more. ``openable``: the openings that are here suffice for all secrets.
    """

    drop: int
    collude: int
    step: timedelta
    clients: int = 0
    answered: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    openable: bool = False

    @property
    def survivors(self) -> int:
        """Clients without which the sum carries less noise than was promised."""
        return self.clients - self.drop


@dataclass(frozen=True)
class Facts:
    """What a decision may depend on. ``grace_until``: before it nobody is declared late;
    ``join``: the round comes after the run and never ends it; ``report``: the model was published
    before it, so its failure completes the run; ``paused_until``: the end of the
    run's pause, if it is paused; ``quorum``: of a secure sum that is open, its survivors.
    """

    now: datetime
    quorum: int
    deadline: timedelta
    extension: timedelta
    max_attempts: int
    members: tuple[Member, ...] = ()
    closes_at: datetime | None = None
    extended: bool = False
    grace_until: datetime | None = None
    last_round: bool = False
    join: bool = False
    report: bool = False
    paused_until: datetime | None = None
    lease_live: bool = False
    why: str = ""
    created_at: datetime | None = None
    secure: SumFacts | None = None

    @property
    def in_grace(self) -> bool:
        return self.grace_until is not None and self.now < self.grace_until

    def of(self, *standings: Standing) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.standing in standings)
