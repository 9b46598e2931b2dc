"""What the site's ledger holds, as values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from core.privacy.events import PrivacyEvent
from core.wire.messages import WorkOrder

Kind = Literal["reserve", "commit", "lost"]
ACCEPTED = "accepted"


class AttemptKey(NamedTuple):
    """One attempt of one client at one round: charged once, executed at most once."""

    run_id: str
    round_number: int
    attempt: int
    client: str

    @classmethod
    def of(cls, order: WorkOrder) -> AttemptKey:
        return cls(order.run_id, order.round_number, order.attempt, order.client)


@dataclass(frozen=True)
class Entry:
    """One row of the ledger. An attempt has one ``reserve`` and at most one other row.

    ``restored``: its attempt was charged from the coordinator's ledger after a backup was restored,
    so that what was lost here may have been sent.
    """

    seq: int
    kind: Kind
    population: str
    unit: str
    key: AttemptKey
    event: PrivacyEvent
    spec_digest: str
    at: str
    restored: bool = False


@dataclass(frozen=True)
class StoredUpdate:
    """Noised bytes that were written before anything was sent.

    ``body`` is None once the update was delivered; ``delivery`` is then ``accepted`` or the
    problem code with which the coordinator refused it for good.
    """

    update_id: str
    key: AttemptKey
    digest: str
    size: int
    work_id: str
    lease_token: str = field(repr=False)
    body: bytes | None = field(repr=False, default=None)
    delivery: str | None = None


@dataclass(frozen=True)
class Decision:
    """What this site has said to a run's plan, for one client.

    ``joins``: it was about one sketch of a completed run, and covers nothing else.
    """

    run_id: str
    client: str
    spec_digest: str
    joins: bool
    decision: Literal["approve", "refuse"]
    by: Literal["person", "policy"]
    why: str = ""


@dataclass(frozen=True)
class Attempt:
    """Where an attempt stands. ``reserved`` after a restart means: it died, maybe mid-noise."""

    key: AttemptKey
    state: Literal["reserved", "committed", "lost"]
    work_id: str
    lease_token: str = field(repr=False)


@dataclass(frozen=True)
class OurAttempt:
    """What the ledger says about an attempt, without its bytes.

    ``delivery``: the coordinator's answer to its update. ``restored``: it was charged from the
    coordinator's ledger after a backup was restored (``worker.agent.restoration``).
    """

    key: AttemptKey
    event: PrivacyEvent
    spec_digest: str
    standing: Literal["open", "commit", "lost"]
    delivery: str | None = None
    restored: bool = False


def charged(entries: Iterable[Entry]) -> list[PrivacyEvent]:
    """The events that count: every reservation, whatever became of it, once."""
    return [entry.event for entry in entries if entry.kind == "reserve"]
