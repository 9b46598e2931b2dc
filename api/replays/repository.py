"""SQL of replays."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.oversight_models import Erasure
from api.db.run_models import Job, Update

KIND = "replay"


async def one(session: AsyncSession, run_id: UUID, number: int, replay_id: UUID) -> Job | None:
    found: Job | None = await session.scalar(
        select(Job).where(
            Job.id == replay_id,
            Job.run_id == run_id,
            Job.round_number == number,
            Job.kind == KIND,
        )
    )
    return found


async def first_erasure(session: AsyncSession, run_id: UUID, number: int) -> Erasure | None:
    """Of the updates that count in this round, the erasure that came first."""
    found: Erasure | None = await session.scalar(
        select(Erasure)
        .join(Update, Update.digest == Erasure.digest)
        .where(Update.run_id == run_id, Update.round_number == number)
        .order_by(Erasure.created_at)
        .limit(1)
    )
    return found
