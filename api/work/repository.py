"""SQL of leased work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Interval, bindparam, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.consents.repository import approved
from api.db.models import Client
from api.db.run_models import Round, Run, RunClient, WorkItem

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


@dataclass(frozen=True)
class Offered:
    """Work for a client, locked; the client's name and its place in the run; the time."""

    work: WorkItem
    client: str
    position: int
    now: datetime


_now = func.clock_timestamp() + bindparam("clock", type_=Interval)
# Made once: putting a query of five tables together costs more than answering it.
_NEXT = (
    select(WorkItem, Client.name, RunClient.position, _now)
    .join(Round, (Round.run_id == WorkItem.run_id) & (Round.number == WorkItem.round_number))
    .join(Run, Run.id == WorkItem.run_id)
    .join(Client, Client.id == WorkItem.client_id)
    .join(
        RunClient,
        (RunClient.run_id == WorkItem.run_id) & (RunClient.client_id == WorkItem.client_id),
    )
    .where(
        WorkItem.client_id == bindparam("client_id"),
        or_(
            WorkItem.state == "leased",
            (WorkItem.state == "ready") & (Run.state != "paused"),
        ),
        WorkItem.available_at <= _now,
        Round.state == "open",
        approved(WorkItem.run_id, WorkItem.client_id),
    )
    .order_by(WorkItem.state, WorkItem.id)  # 'leased' sorts before 'ready'
    .limit(1)
    .with_for_update(of=WorkItem, key_share=True)
    .execution_options(populate_existing=True)
)
_NEXT_OF_RUN = _NEXT.where(WorkItem.run_id == bindparam("run_id"))


async def next_for(
    session: AsyncSession, client_id: UUID, clock: timedelta, run_id: UUID | None = None
) -> Offered | None:
    """What this client should do (in one run): first what it has begun, then the oldest offer,
    locked. A run that has failed has no open round, a paused one makes no offers. Work of a run
    that the site has not approved is never made; if it were, it would not be found.
    """
    values = {"client_id": client_id, "clock": clock, "run_id": run_id}
    query = _NEXT if run_id is None else _NEXT_OF_RUN
    if run_id is None:
        del values["run_id"]
    row = (await session.execute(query, values)).first()
    return None if row is None else Offered(*row)


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
