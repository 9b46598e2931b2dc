"""The audit trail: one row for each thing that somebody (or the coordinator itself) did.

Rows are written in the transaction of what they tell, so the trail says neither more nor less than
what happened. Details are public values and short: no tokens, no bodies, no records.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal
from api.db.base import uuid7
from api.db.engine import ring, topic_of_run
from api.db.oversight_models import AuditEvent

# Who acts when nobody asked: the sweeper and what follows from it.
COORDINATOR = "coordinator"


async def record(
    session: AsyncSession,
    kind: str,
    who: Principal | None,
    *,
    run_id: UUID | None = None,
    round_number: int | None = None,
    client_id: UUID | None = None,
    **detail: Any,
) -> None:
    """Add a row. ``who`` is None for the coordinator itself. Whoever follows the run is woken."""
    request_id = structlog.contextvars.get_contextvars().get("request_id", "")
    session.add(
        AuditEvent(
            id=uuid7(),
            kind=kind,
            actor_scope=COORDINATOR if who is None else who.scope,
            actor_token=None if who is None else who.token_id,
            run_id=run_id,
            round_number=round_number,
            client_id=client_id if client_id is not None or who is None else who.client_id,
            request_id=str(request_id),
            detail=detail,
        )
    )
    await session.flush()
    if run_id is not None:
        await ring(session, topic_of_run(run_id))
