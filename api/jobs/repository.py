"""SQL of the coordinator's own jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.run_models import Job


async def locked(session: AsyncSession, job_id: UUID) -> Job | None:
    found: Job | None = await session.scalar(
        select(Job)
        .where(Job.id == job_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return found


async def overdue(session: AsyncSession, now: datetime) -> Sequence[Job]:
    """Jobs whose lease has ended, locked; those that somebody else holds come another time."""
    query = (
        select(Job)
        .where(Job.state == "leased", Job.lease_expires <= now)
        .with_for_update(key_share=True, skip_locked=True)
    )
    return (await session.scalars(query)).all()
