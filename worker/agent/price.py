"""What a plan costs a population's account, by the site's own ledger. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.federation.plan import RunSpec
from core.privacy import accounting
from core.privacy.events import PrivacyEvent
from core.privacy.premise import resting
from worker.agent.records import Entry, charged
from worker.config import ClientConfig


@dataclass(frozen=True)
class Cost:
    """Epsilons at the client's configured delta. Neighbours: one unit added or removed."""

    plan: float  # what the plan asks of this client, alone
    spent: float  # the account by now, whichever client spent it, lost attempts included
    after: float  # the account, if this client does what is left of the plan and loses nothing
    rests: str  # what the last two rest on, where secure sums are among them; else empty


def cost(
    spec: RunSpec, config: ClientConfig, entries: Sequence[Entry], *, joins: bool = False
) -> Cost:
    """``joins``: one sketch of a completed run instead of the plan's rounds.

    Raises ``ValueError`` for a plan without a guarantee (mode ``paper``), which has no number.
    """
    spent = charged(entries)
    left = ahead(spec, config, entries, joins=joins)
    return Cost(
        plan=accounting.epsilon(ahead(spec, config, (), joins=joins), config.delta),
        spent=accounting.epsilon(spent, config.delta),
        after=accounting.epsilon([*spent, *left], config.delta),
        rests=resting(event.collude for event in (*spent, *left)),
    )


def ahead(
    spec: RunSpec, config: ClientConfig, entries: Sequence[Entry], *, joins: bool
) -> list[PrivacyEvent]:
    """What a plan asks of the client and was not yet committed here."""
    done = committed(own(entries, spec.run_id, config.name))
    if not joins:
        return spec.events(done)
    joined = any(number > spec.last_round for number in done)
    return [] if joined else [spec.event(spec.last_round + 1)]


def own(entries: Sequence[Entry], run_id: str, client: str) -> list[Entry]:
    """Entries of one client in one run."""
    return [e for e in entries if (e.key.run_id, e.key.client) == (run_id, client)]


def committed(entries: Sequence[Entry]) -> set[int]:
    """Rounds that were executed."""
    return {entry.key.round_number for entry in entries if entry.kind == "commit"}
