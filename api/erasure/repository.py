"""SQL of erasures. Rows first, bytes afterwards: see ``api.erasure.service``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from api.db.models import Client, StoredObject
from api.db.oversight_models import Erasure
from api.db.run_models import Round, Update
from core.federation.rounds import TERMINAL

_TERMINAL = [state.value for state in TERMINAL]
_over = Round.state.in_(_TERMINAL)
_erased = exists().where(Erasure.digest == Update.digest)


@dataclass(frozen=True)
class Held:
    """An update whose bytes are kept, and the round that it belongs to."""

    run_id: UUID
    number: int
    round_state: str


def _round_of(rows: type[Update]) -> ColumnElement[bool]:
    return and_(Round.run_id == rows.run_id, Round.number == rows.round_number)


async def expired(
    session: AsyncSession, before: datetime, limit: int, among: Sequence[str] | None = None
) -> Sequence[str]:
    """Digests of updates whose round ended before a time, oldest first; not yet erased."""
    ended_at = func.coalesce(Round.published_at, Round.closed_at, Round.created_at)
    query = (
        select(Update.digest)
        .join(Round, _round_of(Update))
        .where(_over, ended_at < before, ~_erased, _free(before))
    )
    return await _some(session, query, limit, among)


async def of_revoked(
    session: AsyncSession, before: datetime, limit: int, among: Sequence[str] | None = None
) -> Sequence[str]:
    """Digests of updates in rounds that have ended, of clients revoked before a time; not yet
    erased.
    """
    query = (
        select(Update.digest)
        .join(Round, _round_of(Update))
        .join(Client, Client.id == Update.client_id)
        .where(Client.revoked_at <= before, _over, ~_erased, _free())
    )
    return await _some(session, query, limit, among)


async def of_client(
    session: AsyncSession, client_id: UUID, limit: int, among: Sequence[str] | None = None
) -> Sequence[str]:
    """Digests of the client's updates in rounds that have ended; not yet erased."""
    query = (
        select(Update.digest)
        .join(Round, _round_of(Update))
        .where(Update.client_id == client_id, _over, ~_erased, _free())
    )
    return await _some(session, query, limit, among)


async def _some(
    session: AsyncSession, query: Select[str], limit: int, among: Sequence[str] | None
) -> Sequence[str]:
    if among is not None:
        query = query.where(Update.digest.in_(among))
    found = await session.scalars(query.order_by(Update.id).limit(limit))
    return list(dict.fromkeys(found))


async def held_of_client(session: AsyncSession, client_id: UUID) -> list[Held]:
    """Updates of the client whose bytes are not erased."""
    query = (
        select(Update.run_id, Update.round_number, Round.state)
        .join(Round, _round_of(Update))
        .where(Update.client_id == client_id, ~_erased)
        .order_by(Update.id)
    )
    return [Held(*row) for row in await session.execute(query)]


def _free(before: datetime | None = None) -> ColumnElement[bool]:
    """Nothing else names the bytes of this ``Update``: no model, no update of a round that is under
    way, and no other that is to be kept: of a round that ended after ``before``, or, without
    ``before``, of another client, who has not asked for anything.
    """
    other, its_round = aliased(Update), aliased(Round)
    ended_at = func.coalesce(its_round.published_at, its_round.closed_at, its_round.created_at)
    kept: ColumnElement[bool] = other.client_id != Update.client_id
    if before is not None:
        kept = ended_at >= before
    needed = or_(its_round.state.not_in(_TERMINAL), kept)
    by_update = exists().where(
        other.digest == Update.digest,
        its_round.run_id == other.run_id,
        its_round.number == other.round_number,
        needed,
    )
    model = aliased(Round)
    by_model = exists().where(
        or_(
            model.frame_digest == Update.digest,
            model.weights_digest == Update.digest,
            model.optimiser_digest == Update.digest,
        )
    )
    return and_(~by_update, ~by_model)


async def lock_objects(session: AsyncSession, digests: Sequence[str]) -> None:
    """Whoever would name one of them anew waits until this transaction has ended. In order of
    digests, so that two erasures never wait for one another.
    """
    await session.execute(
        select(StoredObject.digest)
        .where(StoredObject.digest.in_(digests))
        .order_by(StoredObject.digest)
        .with_for_update()
    )


async def add(session: AsyncSession, digests: Sequence[str], reason: str) -> Sequence[str]:
    """Rows of those that nobody has erased meanwhile."""
    made = await session.scalars(
        insert(Erasure)
        .values([{"digest": digest, "reason": reason} for digest in digests])
        .on_conflict_do_nothing()
        .returning(Erasure.digest)
    )
    return made.all()


async def pending(session: AsyncSession, limit: int) -> Sequence[str]:
    """Digests whose bytes may still be there, longest first."""
    query = (
        select(Erasure.digest)
        .where(Erasure.done_at.is_(None))
        .order_by(Erasure.created_at)
        .limit(limit)
    )
    return (await session.scalars(query)).all()


async def done(session: AsyncSession, digests: Sequence[str], now: datetime) -> None:
    await session.execute(
        update(Erasure)
        .where(Erasure.digest.in_(digests), Erasure.done_at.is_(None))
        .values(done_at=now)
    )
