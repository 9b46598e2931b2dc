"""SQL of the coordinator's own jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.oversight_models import AuditEvent
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


async def seconds_since_claim(session: AsyncSession, job: Job) -> float | None:
    """How long the job's current attempt has taken; by the trail, since the row has no such time
    (a lease is renewed). None: the trail does not know the claim.
    """
    query = (
        select(func.extract("epoch", func.clock_timestamp() - AuditEvent.at))
        .where(
            AuditEvent.kind == "job-claimed",
            AuditEvent.run_id == job.run_id,
            AuditEvent.detail["job"].astext == str(job.id),
        )
        .order_by(AuditEvent.id.desc())
        .limit(1)
    )
    found = await session.scalar(query)
    return None if found is None else float(found)
