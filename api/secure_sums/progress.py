"""How far a round's sum has come: what the state machine must know of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.db.run_models import Round
from api.rounds.repository import Place
from api.secure_sums import known, repository
from core.federation.plan import RunSpec
from core.federation.round_facts import RoundState, SumFacts
from core.recent import Recent
from core.secagg.collector import Collector
from core.secagg.messages import Opening, Session
from core.wire.secure import StepAnswer

_openable = Recent[tuple[UUID, int, int], bool](256)


@dataclass(frozen=True)
class Progress:
    """Of a round whose sum is secure. ``said``: (state, reason) by client of the step that the
    round is at; ``shared``: clients that have shared secrets; ``openable``: the sum can be opened.
    """

    session: Session | None
    said: Mapping[UUID, tuple[str, str]]
    shared: frozenset[UUID]
    openable: bool = False

    def facts(self, spec: RunSpec, places: Sequence[Place]) -> SumFacts:
        groups: dict[str, list[str]] = {"answered": [], "pending": [], "gone": []}
        for place in places:
            if place.client.id in self.said:
                groups[self.group(place)].append(place.client.name)
        terms = spec.plan.secure
        return SumFacts(
            drop=terms.drop,
            collude=terms.collude,
            step=timedelta(seconds=terms.step_s),
            clients=0 if self.session is None else len(self.session.sites),
            answered=tuple(groups["answered"]),
            pending=tuple(groups["pending"]),
            gone=tuple(groups["gone"]),
            openable=self.openable,
        )

    def group(self, place: Place) -> str:
        """Of a client that was asked. What was answered counts, whatever becomes of its client."""
        state, _ = self.said[place.client.id]
        if state == "answered":
            return "answered"
        client, seat = place.client, place.seat
        out = (client.revoked_at, seat.left_at, seat.quarantined_at)
        return "gone" if state == "declined" or any(out) else "pending"


async def read(
    session: AsyncSession, spec: RunSpec, row: Round, *, opens: bool = False
) -> Progress | None:
    """None for a round whose sum is no secure one. ``opens``: look whether the sum can be opened,
    which may take a moment, on a thread.
    """
    if not spec.is_secure(row.number):
        return None
    run_id, number = row.run_id, row.number
    asked = None
    if row.state != RoundState.DRAFT:
        asked = await known.session_of(session, run_id, number)
    if asked is None:
        return Progress(None, {}, frozenset())
    shares = await repository.said(session, run_id, number, "shares")
    shared = frozenset(client for client, (state, _) in shares.items() if state == "answered")
    step = repository.STEP_OF.get(row.state)
    if step is None:
        return Progress(asked, {}, shared)
    said = shares if step == "shares" else await repository.said(session, run_id, number, step)
    openable = False
    if opens and step == "open":
        here = sum(state == "answered" for state, _ in said.values())
        openable = await _can_open(session, run_id, number, here)
    return Progress(asked, said, shared, openable)


async def _can_open(session: AsyncSession, run_id: UUID, number: int, here: int) -> bool:
    """Openings are only ever added, so their number names them."""
    key = (run_id, number, here)
    if (found := _openable.get(key)) is not None:
        return found
    fixed = await known.at(session, run_id, number, "open")
    threshold = fixed.session.thresholds(len(fixed.roster)).threshold
    if here < threshold:
        return False
    given = await openings(session, run_id, number)
    return _openable.keep(key, await asyncio.to_thread(_open, fixed, given))


def _open(fixed: known.Known, openings: Sequence[Opening]) -> bool:
    collector = Collector.before(fixed.session, fixed.roster, fixed.sharers, fixed.survivors)
    for opening in openings:
        collector.open(opening)
    return collector.can_open()


async def openings(session: AsyncSession, run_id: UUID, number: int) -> tuple[Opening, ...]:
    """In the order of their clients' names."""
    bodies = await repository.answers(session, run_id, number, "open")
    given = (StepAnswer.model_validate(body).opening for body in bodies.values())
    return tuple(opening for opening in given if opening is not None)
