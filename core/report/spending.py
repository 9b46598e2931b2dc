"""How a client's epsilon grew over the rounds, recomputed from the ledger's events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from core.federation.plan import RunSpec
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.report.report import ClientSpending, Spending

# One evaluation of the accountant takes a tenth of a second; those of clients with the same
# reservations are one. The curves have fewer points where clients differ.
_EVALUATIONS = 10
_MOST_POINTS = 8


@dataclass(frozen=True)
class Reserved:
    """One reservation of an account for the run; ``lost`` if its attempt has no update."""

    round: int
    event: PrivacyEvent
    lost: bool


def spending(
    spec: RunSpec, clients: Sequence[tuple[str, str, Sequence[Reserved]]]
) -> tuple[ClientSpending, ...]:
    """Of each client (its name, unit, account's reservations for a model), at the plan's delta.

    An upper bound for adding or removing one unit: every reservation counts, also a lost one.
    """
    distinct = {_history(rows) for _, _, rows in clients}
    points = max(1, min(_MOST_POINTS, _EVALUATIONS // max(1, len(distinct))))
    known: dict[tuple[tuple[int, PrivacyEvent], ...], tuple[Spending, ...]] = {}
    found = []
    for client, unit, rows in clients:
        history = _history(rows)
        if history not in known:
            known[history] = _curve(spec, history, points)
        curve = known[history]
        found.append(
            ClientSpending(
                client=client,
                unit=unit,
                epsilon=curve[-1].epsilon if curve else 0.0,
                reservations=len(rows),
                lost=sum(row.lost for row in rows),
                curve=curve,
            )
        )
    return tuple(found)


def _history(rows: Sequence[Reserved]) -> tuple[tuple[int, PrivacyEvent], ...]:
    return tuple((row.round, row.event) for row in sorted(rows, key=lambda row: row.round))


def _curve(
    spec: RunSpec, history: tuple[tuple[int, PrivacyEvent], ...], points: int
) -> tuple[Spending, ...]:
    delta = spec.plan.privacy.delta
    rounds = sorted({number for number, _ in history})
    curve = []
    for number in _chosen(spec, rounds, points):
        events = [event for when, event in history if when <= number]
        curve.append(Spending(round=number, kind=spec.kind(number), epsilon=epsilon(events, delta)))
    return tuple(curve)


def _chosen(spec: RunSpec, rounds: Sequence[int], points: int) -> list[int]:
    """The last round, the last one of each kind if there is room, the others evenly."""
    if not rounds:
        return []
    chosen = {rounds[-1]}
    ends = [
        this for this, after in pairwise(rounds)
        if spec.kind(this) != spec.kind(after)
    ]  # fmt: skip
    chosen.update(ends[: max(0, points - 1)])
    for place in range(1, points):
        if len(chosen) >= points:
            break
        chosen.add(rounds[place * (len(rounds) - 1) // points])
    return sorted(chosen)
