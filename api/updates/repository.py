"""SQL of updates."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.db.models import StoredObject
from api.db.run_models import Update, WorkItem


async def existing(
    session: AsyncSession, *, run_id: UUID, number: int, client_id: UUID, update_id: UUID
) -> Update | None:
    """The client's update of this round, or one that it sent elsewhere under the same id."""
    query = (
        select(Update)
        .where(
            Update.client_id == client_id,
            or_(
                Update.update_id == update_id,
                (Update.run_id == run_id) & (Update.round_number == number),
            ),
        )
        .order_by((Update.run_id == run_id).desc(), (Update.round_number == number).desc())
        .limit(1)
    )
    found: Update | None = await session.scalar(query)
    return found


async def remember_object(session: AsyncSession, digest: str, size: int) -> None:
    """The row of stored bytes; the same bytes may come from several places."""
    await session.execute(
        insert(StoredObject).values(digest=digest, size=size).on_conflict_do_nothing()
    )


async def add(
    session: AsyncSession, work: WorkItem, update_id: UUID, digest: str, size: int
) -> Update:
    row = Update(
        id=uuid7(),
        update_id=update_id,
        run_id=work.run_id,
        round_number=work.round_number,
        client_id=work.client_id,
        work_id=work.id,
        digest=digest,
        size=size,
    )
    session.add(row)
    await session.flush()
    return row
