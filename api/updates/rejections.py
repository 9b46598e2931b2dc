"""What becomes of an update that was refused: a row that says why, and sometimes a quarantine.

The bytes are never kept: an update without the promised noise may be a private gradient. A site
whose noise or norm is implausible runs broken software; each further attempt would cost it epsilon
(and perhaps its privacy), so it gets no more work of the run until an administrator releases it.
An update that cannot even be read, or has another layout, quarantines nobody: that is a transfer
or a version gone wrong, and the same attempt may send the right bytes yet.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import structlog
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.context import Context
from api.db.base import uuid7
from api.db.models import Client
from api.db.oversight_models import Rejection
from api.pages import cut
from api.runs import control
from api.updates.target import Target
from api.webhooks import kinds as webhooks
from core.errors import (
    UpdateNoiseImplausible,
    UpdateNormImplausible,
    UpdateNotFinite,
    UpdateRejected,
)

log = structlog.get_logger(__name__)
QUARANTINED = (UpdateNoiseImplausible, UpdateNormImplausible, UpdateNotFinite)


class RejectionView(BaseModel):
    id: UUID
    run_id: UUID
    round: int
    client: str
    update_id: UUID
    digest: str
    size: int
    code: str
    reason: str
    quarantined: bool
    at: datetime


async def refused(ctx: Context, to: Target, digest: str, size: int, error: UpdateRejected) -> None:
    """Write down a refusal, and put the client into quarantine if its update was implausible.

    The same bytes sent again are refused again, but written down once.
    """
    run_id, number = to.run_id, to.number
    async with ctx.database.write() as session:
        if await _known(session, to, digest):
            return
        if isinstance(error, QUARANTINED) and to.work_id is not None:
            await control.quarantine(ctx, session, run_id, to.client_id, error.message)
        session.add(
            Rejection(
                id=uuid7(),
                run_id=run_id,
                round_number=number,
                client_id=to.client_id,
                work_id=to.work_id,
                update_id=to.update_id,
                digest=digest,
                size=size,
                code=error.code,
                reason=error.message,
            )
        )
        await audit.record(
            session,
            "update-refused",
            to.who,
            run_id=run_id,
            round_number=number,
            client_id=to.client_id,
            code=error.code,
            reason=error.message,
            update_id=str(to.update_id),
        )
        await webhooks.tell(
            session,
            "update-rejected",
            see=f"/v1/runs/{run_id}/rejections",
            run_id=run_id,
            round=number,
            client_id=to.client_id,
            code=error.code,
        )
    ctx.meters.updates_rejected.labels(error.code).inc()
    log.warning("update_refused", run_id=str(run_id), round=number, code=error.code)


async def _known(session: AsyncSession, to: Target, digest: str) -> bool:
    query = select(Rejection.id).where(
        Rejection.client_id == to.client_id,
        Rejection.update_id == to.update_id,
        Rejection.digest == digest,
    )
    return await session.scalar(query.limit(1)) is not None


async def page(
    session: AsyncSession, run_id: UUID, limit: int, after: UUID | None, client_id: UUID | None
) -> list[RejectionView]:
    """Oldest first, one more than ``limit``; with ``client_id`` those of one client."""
    query = (
        select(Rejection, Client.name)
        .join(Client, Client.id == Rejection.client_id)
        .where(Rejection.run_id == run_id)
    )
    if client_id is not None:
        query = query.where(Rejection.client_id == client_id)
    codes = {kind.code for kind in QUARANTINED}
    return [
        RejectionView(
            id=row.id,
            run_id=row.run_id,
            round=row.round_number,
            client=name,
            update_id=row.update_id,
            digest=row.digest,
            size=row.size,
            code=row.code,
            reason=row.reason,
            quarantined=row.code in codes and row.work_id is not None,
            at=row.created_at,
        )
        for row, name in await session.execute(cut(query, Rejection.id, limit, after))
    ]
