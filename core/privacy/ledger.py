"""The privacy ledger as pure functions over its entries.

An account belongs to one (site, population, unit). Its entries are only ever added:

* ``reserve``: written before an order is handed out, carries the event that it may execute;
* ``commit``: the site says the noise was drawn (its update was accepted);
* ``lost``: the attempt ended without an accepted update. Whether noise was drawn is unknown, so
  it counts as spent for ever.

Each reservation has at most one outcome and nothing is refunded. Hence what an account has spent
in the worst case is the composition of ALL its reservations; ``epsilon_*`` recompute it from the
events by ``core.privacy.accounting`` and never from stored numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from core.errors import BudgetExceeded
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent

Kind = Literal["reserve", "commit", "lost"]


@dataclass(frozen=True)
class Entry:
    """One ledger row. ``reserve`` rows carry ``event``; the others name their ``reserve_id``."""

    id: str
    kind: Kind
    event: PrivacyEvent | None = None
    reserve_id: str | None = None


class LedgerInconsistent(ValueError):
    """The entries break a rule that the database enforces: somebody changed them by hand."""


def _outcomes(entries: Sequence[Entry]) -> dict[str, Kind]:
    reserved = {e.id for e in entries if e.kind == "reserve"}
    outcomes: dict[str, Kind] = {}
    for entry in entries:
        if entry.kind == "reserve":
            if entry.event is None:
                raise LedgerInconsistent(f"reservation {entry.id} carries no event")
            continue
        if entry.reserve_id not in reserved:
            raise LedgerInconsistent(f"{entry.kind} {entry.id} names no reservation")
        if entry.reserve_id in outcomes:
            raise LedgerInconsistent(f"reservation {entry.reserve_id} has two outcomes")
        outcomes[entry.reserve_id] = entry.kind
    return outcomes


def _events(entries: Sequence[Entry], outcome: Kind | None) -> list[PrivacyEvent]:
    outcomes = _outcomes(entries)
    return [
        e.event
        for e in entries
        if e.kind == "reserve" and e.event is not None and outcomes.get(e.id) == outcome
    ]


def committed(entries: Sequence[Entry]) -> list[PrivacyEvent]:
    """Events whose noised result was accepted."""
    return _events(entries, "commit")


def lost(entries: Sequence[Entry]) -> list[PrivacyEvent]:
    """Events of attempts that ended without an accepted update; spent all the same."""
    return _events(entries, "lost")


def outstanding(entries: Sequence[Entry]) -> list[PrivacyEvent]:
    """Events of reservations without an outcome yet."""
    return _events(entries, None)


def worst_case(entries: Sequence[Entry]) -> list[PrivacyEvent]:
    """Committed, lost and outstanding events together: what a budget is compared with."""
    return [*committed(entries), *lost(entries), *outstanding(entries)]


def epsilon_committed(entries: Sequence[Entry], delta: float) -> float:
    """Epsilon at ``delta`` of what certainly happened: commits and (never refunded) losses."""
    return epsilon([*committed(entries), *lost(entries)], delta)


def epsilon_total(entries: Sequence[Entry], delta: float) -> float:
    """Epsilon at ``delta`` in the worst case: everything that was ever reserved."""
    return epsilon(worst_case(entries), delta)


def check_budget(
    spent: Iterable[PrivacyEvent],
    wanted: Iterable[PrivacyEvent],
    *,
    epsilon_budget: float,
    delta: float,
) -> float:
    """Epsilon after ``wanted``, or ``BudgetExceeded`` if it would pass the budget.

    ``spent`` is the account's worst case. The comparison is exact: the accountant's result is
    already an upper bound, and a budget equal to a plan's target fits the plan.
    """
    after = epsilon([*spent, *wanted], delta)
    if after > epsilon_budget:
        raise BudgetExceeded(
            f"the account would have spent epsilon {after:.4f} at delta {delta:g}, "
            f"more than its budget of {epsilon_budget:g}",
            mend="Use another population or a plan with a smaller epsilon.",
            epsilon_after=after,
            epsilon_budget=epsilon_budget,
            delta=delta,
        )
    return after
