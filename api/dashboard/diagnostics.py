"""What a run's updates look like from outside: where each client stands, lengths and sizes.

Lengths are those of released vectors, after clipping and noise: they say nothing that was not
released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.dashboard.repository import PastRound
from api.rounds.service import MemberView, RoundView
from core.federation.rounds import Standing
from core.wire.messages import AggregateResult

# In the order in which they are worth a look, with the words for people.
WORDS: dict[Standing, tuple[str, str]] = {
    Standing.HELD: ("in quarantine", "bad"),
    Standing.OUT: ("out of this round", "bad"),
    Standing.LOST: ("attempt lost", "warn"),
    Standing.ASKED: ("consent awaited", "warn"),
    Standing.WAITING: ("order waits to be fetched", "wait"),
    Standing.ANSWERING: ("step not answered yet", "wait"),
    Standing.LEASED: ("at work", "busy"),
    Standing.ANSWERED: ("step answered", "good"),
    Standing.ACCEPTED: ("update counts", "good"),
}
_MOST_LINES = 8


@dataclass(frozen=True)
class Stand:
    member: MemberView
    words: str
    tone: str


@dataclass(frozen=True)
class Length:
    """L2 norm of one released update, its robust z-score, and whether it stood out."""

    round: int
    client: str
    norm: float
    z: float
    outlier: bool


@dataclass(frozen=True)
class Lengths:
    rows: tuple[Length, ...]
    plot: dict[str, object] | None
    left_out: int


def standings(round_: RoundView | None) -> list[Stand]:
    """Clients of a round, those first that it waits for or has lost."""
    if round_ is None:
        return []
    order = list(WORDS)
    found = [Stand(member, *WORDS[member.standing]) for member in round_.clients]
    return sorted(found, key=lambda one: order.index(one.member.standing))


def lengths(results: Sequence[tuple[int, dict[str, Any]]], names: Mapping[str, str]) -> Lengths:
    """Round by round. The plot has the clients of most updates; the table has all."""
    rows = []
    for number, result in results:
        found = AggregateResult.model_validate(result).diagnostics
        if found is None:
            continue
        rows += [
            Length(
                number,
                names.get(one.client_id, one.client_id),
                one.norm,
                one.z,
                names.get(one.client_id, one.client_id) in found.outliers,
            )
            for one in found.clients
        ]
    clients = sorted({row.client for row in rows})
    numbers = sorted({row.round for row in rows})
    if len(numbers) < 2:
        return Lengths(tuple(rows), None, 0)
    known = {(row.client, row.round): row.norm for row in rows}
    series = [
        {
            "label": client,
            "values": [known.get((client, number)) for number in numbers],
            "colour": place,
            "points": True,
        }
        for place, client in enumerate(clients[:_MOST_LINES])
    ]
    plot: dict[str, object] = {"kind": "number", "unit": "", "x": numbers, "series": series}
    return Lengths(tuple(rows), plot | {"log": True}, max(0, len(clients) - _MOST_LINES))


def sizes(past: Sequence[PastRound]) -> dict[str, object] | None:
    """Bytes that sites have sent, round by round."""
    received = [one for one in reversed(past) if one.received]
    if len(received) < 2:
        return None
    return {
        "kind": "number",
        "unit": "kB",
        "x": [one.number for one in received],
        "zero": True,
        "series": [
            {
                "label": "received",
                "values": [one.received / 1000 for one in received],
                "bars": True,
                "colour": 0,
            }
        ],
    }
