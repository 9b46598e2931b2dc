"""SQL of leased work."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.consents.repository import approved
from api.db.run_models import Round, Run, WorkItem

# At least what a poll may give: by the index of offered work, and by plans that await an answer in
# runs (or joins) that go on. A site that never answered does not make every later poll a write.
OFFERED = """
SELECT 1 FROM work_items
WHERE client_id = %(client_id)s AND state IN ('ready', 'leased')
  AND available_at <= clock_timestamp() + %(clock)s
UNION ALL
SELECT 1 FROM consents c JOIN runs r ON r.id = c.run_id
WHERE c.client_id = %(client_id)s AND c.state = 'asked' AND (
  r.state IN ('draft', 'running', 'paused') OR EXISTS (
    SELECT FROM rounds o WHERE o.run_id = r.id AND o.state IN ('draft', 'open')))
LIMIT 1
"""


async def next_for(
    session: AsyncSession, client_id: UUID, now: datetime, run_id: UUID | None = None
) -> WorkItem | None:
    """What this client should do (in one run): first what it has begun, then the oldest offer,
    locked. A run that has failed has no open round, a paused one makes no offers. Work of a run
    that the site has not approved is never made; if it were, it would not be found.
    """
    query = (
        select(WorkItem)
        .join(
            Round,
            (Round.run_id == WorkItem.run_id) & (Round.number == WorkItem.round_number),
        )
        .join(Run, Run.id == WorkItem.run_id)
        .where(
            WorkItem.client_id == client_id,
            or_(
                WorkItem.state == "leased",
                (WorkItem.state == "ready") & (Run.state != "paused"),
            ),
            WorkItem.available_at <= now,
            Round.state == "open",
            approved(WorkItem.run_id, WorkItem.client_id),
        )
        .order_by(WorkItem.state, WorkItem.id)  # 'leased' sorts before 'ready'
        .limit(1)
        .with_for_update(of=WorkItem, key_share=True)
        .execution_options(populate_existing=True)
    )
    if run_id is not None:
        query = query.where(WorkItem.run_id == run_id)
    found: WorkItem | None = await session.scalar(query)
    return found


async def locked(session: AsyncSession, work_id: UUID) -> WorkItem | None:
    found: WorkItem | None = await session.scalar(
        select(WorkItem)
        .where(WorkItem.id == work_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return found


async def one(session: AsyncSession, work_id: UUID) -> WorkItem | None:
    return await session.get(WorkItem, work_id)
