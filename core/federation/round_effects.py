"""What a decision about a round can be, as data: effects, and accept, reject or wait."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from core.federation.round_facts import RoundState

# --- effects: what the service does in the same transaction ---


@dataclass(frozen=True)
class SetDeadline:
    at: datetime
    extended: bool = False


@dataclass(frozen=True)
class IssueWork:
    """Reserve in the ledger and create the attempt; a refused reservation puts the client out."""

    client: str
    attempt: int


@dataclass(frozen=True)
class AskStep:
    """Ask these clients for a step of the secure sum; with ``keys`` its session is made."""

    step: Literal["keys", "shares", "confirm", "open"]
    clients: tuple[str, ...]


@dataclass(frozen=True)
class KeepTranscript:
    """Store what opens the sum: nothing more is taken."""


@dataclass(frozen=True)
class ExpireLease:
    """The attempt is over: its reservation becomes ``lost``."""

    client: str


@dataclass(frozen=True)
class LoseOpenWork:
    """Every order that is still out is withdrawn; reservations become ``lost``."""


@dataclass(frozen=True)
class RecordUpdate:
    """Store the update, finish the work, commit the reservation."""


@dataclass(frozen=True)
class QueueAggregation:
    pass


@dataclass(frozen=True)
class PublishModel:
    pass


@dataclass(frozen=True)
class OpenNextRound:
    pass


@dataclass(frozen=True)
class CompleteRun:
    pass


@dataclass(frozen=True)
class FailRun:
    why: str


@dataclass(frozen=True)
class CancelRun:
    """Somebody stopped the run, or let its pause run out."""

    why: str


Effect = (
    SetDeadline
    | IssueWork
    | AskStep
    | KeepTranscript
    | ExpireLease
    | LoseOpenWork
    | RecordUpdate
    | QueueAggregation
    | PublishModel
    | OpenNextRound
    | CompleteRun
    | FailRun
    | CancelRun
)


# --- decisions ---


@dataclass(frozen=True)
class Accept:
    next: RoundState
    effects: tuple[Effect, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Reject:
    code: str


@dataclass(frozen=True)
class Wait:
    until: datetime | None
    why: str


Decision = Accept | Reject | Wait
