"""Who takes part in a round: all founding clients, a public choice of them, or those who join."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.rounds import repository
from api.rounds.repository import Place
from core.federation.plan import RunSpec
from core.federation.selection import selected


async def places(session: AsyncSession, run_id: UUID, spec: RunSpec, number: int) -> list[Place]:
    """Everybody of the round in the order of its sums, with consent and newest attempt."""
    if spec.kind(number) == "join":
        return await repository.places(session, run_id, number, join=True)
    founding = await repository.places(session, run_id, number, join=False)
    chosen = set(selected(spec, len(founding), number))
    return [place for place in founding if place.seat.position in chosen]
