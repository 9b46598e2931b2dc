"""Deletes stored bytes of updates: the row that says so first, the bytes afterwards.

A row is committed before anything is deleted and marked once the bytes are gone. A crash in
between leaves a row that is not marked, and the next pass deletes again, which is harmless.
Bytes without a row are never deleted. Models are never erased: what counted stays counted, and
frame, weights and optimiser state stay what they were made of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import structlog
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.clients import service as clients
from api.context import Context
from api.erasure import repository
from core.federation.rounds import TERMINAL, RoundState

log = structlog.get_logger(__name__)
Reason = Literal["retention", "requested", "revoked"]
Choose = Callable[[AsyncSession, Sequence[str] | None], Awaitable[Sequence[str]]]
_BATCH = 100
_BATCHES_A_REQUEST = 100


class KeptView(BaseModel):
    run_id: UUID
    round: int
    why: str


class ErasedView(BaseModel):
    client: str
    erased: int = Field(description="Updates whose bytes this request has erased.")
    kept: list[KeptView] = Field(description="Updates whose bytes are still there, and why.")


async def _mark(
    ctx: Context,
    choose: Choose,
    reason: Reason,
    who: Principal | None,
    client_id: UUID | None = None,
) -> int:
    """Write down one batch of erasures. Chosen, locked, and chosen again: what somebody has begun
    to need meanwhile is left alone.
    """
    async with ctx.database.write() as session:
        candidates = await choose(session, None)
        if not candidates:
            return 0
        await repository.lock_objects(session, candidates)
        still = await choose(session, candidates)
        if not still:
            return 0
        marked = await repository.add(session, still, reason)
        if marked:
            await audit.record(
                session,
                "updates-erased",
                who,
                client_id=client_id,
                reason=reason,
                updates=len(marked),
            )
        return len(marked)


async def finish(ctx: Context) -> int:
    """Delete what was written down, one batch; how many objects that were."""
    async with ctx.database.read() as session:
        digests = await repository.pending(session, _BATCH)
    if digests:
        await asyncio.to_thread(_delete, ctx, digests)
        async with ctx.database.write() as session:
            await repository.done(session, digests, await ctx.database.now(session))
        log.info("updates_erased", updates=len(digests))
    return len(digests)


def _delete(ctx: Context, digests: Sequence[str]) -> None:
    for digest in digests:
        ctx.store.delete(digest)


async def tidy(ctx: Context) -> bool:
    """One batch of what the retention periods ask for, and what a crash left. True: there may be
    more.
    """
    async with ctx.database.read() as session:
        now = await ctx.database.now(session)
    days = ctx.settings.update_retention_days
    marked = 0
    if days is not None:
        marked = await _mark(ctx, _expired(now - timedelta(days=days)), "retention", None)
    revoked = _revoked(now - timedelta(days=ctx.settings.revoked_retention_days))
    also = await _mark(ctx, revoked, "revoked", None)
    finished = await finish(ctx)
    return _BATCH in (marked, also, finished)


def _expired(before: datetime) -> Choose:
    return lambda session, among: repository.expired(session, before, _BATCH, among)


def _revoked(before: datetime) -> Choose:
    return lambda session, among: repository.of_revoked(session, before, _BATCH, among)


async def erase_of_client(ctx: Context, who: Principal, client_id: UUID) -> ErasedView:
    """Erase what the client has sent, but for what a round under way needs. Idempotent."""
    async with ctx.database.read() as session:
        client = await clients.one(session, who, client_id)

    def choose(session: AsyncSession, among: Sequence[str] | None) -> Awaitable[Sequence[str]]:
        return repository.of_client(session, client_id, _BATCH, among)

    erased = 0
    for _ in range(_BATCHES_A_REQUEST):
        marked = await _mark(ctx, choose, "requested", who, client_id)
        erased += marked
        if not marked:
            break
    while await finish(ctx):
        pass
    async with ctx.database.read() as session:
        held = await repository.held_of_client(session, client_id)
    return ErasedView(client=client.name, erased=erased, kept=[_kept(one) for one in held])


def _kept(held: repository.Held) -> KeptView:
    if RoundState(held.round_state) not in TERMINAL:
        why = f"the round is {held.round_state} and needs it; ask again once it has ended"
    else:
        why = "another client, a round under way or a model has the very same bytes"
    return KeptView(run_id=held.run_id, round=held.number, why=why)
