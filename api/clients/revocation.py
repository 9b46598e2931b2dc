"""Revoking a client: from now on it is let in nowhere and gets no work of any run.

What was accepted of it stays in the models that hold it; what was reserved for it stays spent.
"""

from __future__ import annotations

from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.clients import repository
from api.context import Context
from api.db.models import Client
from api.problems import NotFound
from api.runs import control
from api.runs import repository as runs

log = structlog.get_logger(__name__)


async def revoke(
    ctx: Context, session: AsyncSession, who: Principal, client_id: UUID, why: str
) -> Client:
    """For good. Its tokens are refused from the next request on, its open orders are withdrawn.

    Runs are locked in the order of their ids, each before its rounds: a step of the driver either
    sees the revocation or has made an order by then, which is withdrawn here.
    """
    client = await repository.locked(session, client_id)
    if client is None:
        raise NotFound(f"there is no client {client_id}")
    if client.revoked_at is not None:
        return client
    client.revoked_at, client.revoked_why = await ctx.database.now(session), why
    await repository.revoke_tokens(session, client_id, client.revoked_at)
    await session.flush()
    for run_id in await repository.live_runs(session, client_id):
        run = await runs.locked(session, run_id)
        if run is not None:
            await control.withdraw(ctx, session, run, client_id, f"revoked: {why}")
    await audit.record(session, "client-revoked", who, client_id=client_id, why=why)
    log.warning("client_revoked", client_id=str(client_id))
    return client
