"""SQL of the audit trail, in the order in which events were committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, exists, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.oversight_models import AuditEvent, AuditOrder
from api.db.run_models import LIVE_ROUND, Round, Run

_ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Filter:
    """Which events; None and empty mean all."""

    run_id: UUID | None = None
    round_number: int | None = None
    client_id: UUID | None = None
    kinds: tuple[str, ...] = ()
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Placed:
    """An event and its place in the trail."""

    position: int
    event: AuditEvent


def _ordered() -> Select[int, AuditEvent]:
    return select(AuditOrder.position, AuditEvent).join(
        AuditEvent, AuditEvent.id == AuditOrder.event_id
    )


async def page(
    session: AsyncSession, which: Filter, limit: int, after: int | None, *, newest_first: bool
) -> Sequence[AuditEvent]:
    """One more than ``limit``, from behind the position ``after``."""
    query = _ordered()
    if which.run_id is not None:
        query = query.where(AuditOrder.run_id == which.run_id, AuditEvent.run_id == which.run_id)
    if which.round_number is not None:
        query = query.where(AuditEvent.round_number == which.round_number)
    if which.client_id is not None:
        query = query.where(AuditEvent.client_id == which.client_id)
    if which.kinds:
        query = query.where(AuditEvent.kind.in_(which.kinds))
    if which.actor is not None:
        query = query.where(AuditEvent.actor_scope == which.actor)
    if which.since is not None:
        query = query.where(AuditEvent.at >= which.since)
    if which.until is not None:
        query = query.where(AuditEvent.at < which.until)
    position = AuditOrder.position
    if after is not None:
        query = query.where(position < after if newest_first else position > after)
    query = query.order_by(position.desc() if newest_first else position)
    return [event for _, event in await session.execute(query.limit(limit + 1))]


async def position_of(
    session: AsyncSession, event_id: UUID, run_id: UUID | None = None
) -> int | None:
    """An event's place in the trail, if there is such an event (of this run)."""
    query = select(AuditOrder.position).where(AuditOrder.event_id == event_id)
    if run_id is not None:
        query = query.where(AuditOrder.run_id == run_id)
    found: int | None = await session.scalar(query)
    return found


async def newest_of_run(session: AsyncSession, run_id: UUID) -> tuple[int, UUID] | None:
    """(position, id) of the last event that was committed."""
    query = (
        select(AuditOrder.position, AuditOrder.event_id)
        .where(AuditOrder.run_id == run_id)
        .order_by(AuditOrder.position.desc())
        .limit(1)
    )
    row = (await session.execute(query)).first()
    return None if row is None else (row[0], row[1])


async def of_run(session: AsyncSession, run_id: UUID, after: int, limit: int) -> list[Placed]:
    """Events of a run behind a position, oldest first."""
    query = (
        _ordered()
        .where(AuditOrder.run_id == run_id, AuditOrder.position > after)
        .order_by(AuditOrder.position)
        .limit(limit)
    )
    return [Placed(position, event) for position, event in await session.execute(query)]


async def ended(session: AsyncSession, run_id: UUID) -> Run | None:
    """The run, if nothing more happens in it by itself: it has ended and no join is under way."""
    live = exists().where(Round.run_id == run_id, text(f"rounds.{LIVE_ROUND}"))
    found: Run | None = await session.scalar(
        select(Run)
        .where(Run.id == run_id, or_(*(Run.state == state for state in _ENDED)), ~live)
        .execution_options(populate_existing=True)
    )
    return found
