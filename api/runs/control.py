"""What people do to a run under way: pause, resume, cancel; and who leaves it.

Every function takes the locks of the driver in the driver's order (run, round, work, account), so
that a person and the sweeper never act on half a state. All are repeatable.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.context import Context
from api.db.engine import TOPIC_SWEEP, ring
from api.db.run_models import Run, RunClient
from api.problems import Conflict, NotFound
from api.rounds import driver, moment, orders
from api.runs import repository
from core.federation.rounds import TERMINAL

log = structlog.get_logger(__name__)
_BY_OPERATOR = "stopped by the operator"


async def _locked(session: AsyncSession, run_id: UUID) -> Run:
    run = await repository.locked(session, run_id)
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    return run


async def pause(
    ctx: Context, session: AsyncSession, who: Principal, run_id: UUID, seconds: float
) -> Run:
    """No new orders and no deadlines until it is resumed, for ``seconds`` at most (from now, also
    if it is paused already). Orders in hand may be finished: they are spent.
    """
    run = await _locked(session, run_id)
    if run.state not in ("running", "paused"):
        raise Conflict(
            f"only a run under way can be paused; this one is {run.state}", field="run_id"
        )
    now = await ctx.database.now(session)
    run.state, run.why = "paused", "paused by the operator"
    run.paused_at = run.paused_at or now
    run.pause_ends = now + timedelta(seconds=seconds)
    await audit.record(session, "run-paused", who, run_id=run.id, until=run.pause_ends.isoformat())
    await ring(session, TOPIC_SWEEP)
    return run


async def resume(ctx: Context, session: AsyncSession, who: Principal, run_id: UUID) -> Run:
    """Go on. The open round gets back the time that the pause has taken from its deadline."""
    run = await _locked(session, run_id)
    if run.state == "running":
        return run
    if run.state != "paused" or run.paused_at is None:
        raise Conflict(f"only a paused run can be resumed; this one is {run.state}", field="run_id")
    at = await moment.newest(ctx, session, run)
    now = await ctx.database.now(session)
    if at is not None and at.row.state == "open" and at.row.deadline is not None:
        # What was paused before the round opened has taken nothing from it.
        began = max(run.paused_at, at.row.opened_at or run.paused_at)
        at.row.deadline += now - began
    run.state, run.why, run.paused_at, run.pause_ends = "running", "", None, None
    await session.flush()
    await orders.announce_ready(session, run.id)
    await audit.record(session, "run-resumed", who, run_id=run.id)
    await ring(session, TOPIC_SWEEP)
    return run


async def cancel(ctx: Context, session: AsyncSession, who: Principal, run_id: UUID) -> Run:
    """Stop a run for good. A run that has ended stays as it is, but for a join under way."""
    run = await _locked(session, run_id)
    at = await moment.newest(ctx, session, run)
    if at is not None:
        await driver.abandon(at, _BY_OPERATOR, who)
    elif run.state == "draft":
        driver.end_run(run, "cancelled", _BY_OPERATOR, await ctx.database.now(session))
        await audit.record(session, "run-cancelled", who, run_id=run.id, why=_BY_OPERATOR)
    return run


async def leave(
    ctx: Context, session: AsyncSession, who: Principal, run_id: UUID, client_id: UUID, why: str
) -> None:
    """The client takes no further part in the run. What was accepted of it stays and counts."""
    run = await _locked(session, run_id)
    seat = await _seat(session, run_id, client_id)
    if seat.left_at is None:
        seat.left_at, seat.left_why = await ctx.database.now(session), why
        await withdraw(ctx, session, run, client_id, f"left the run: {why}")
        await audit.record(
            session, "client-left-run", who, run_id=run.id, client_id=client_id, why=why
        )


async def release(
    ctx: Context, session: AsyncSession, who: Principal, run_id: UUID, client_id: UUID
) -> None:
    """End a client's quarantine: it gets work again from the next attempt on."""
    run = await _locked(session, run_id)
    seat = await _seat(session, run_id, client_id)
    if seat.quarantined_at is not None:
        was, seat.quarantined_at, seat.quarantine_why = seat.quarantine_why, None, ""
        await audit.record(
            session, "quarantine-ended", who, run_id=run.id, client_id=client_id, was=was
        )
        await ring(session, TOPIC_SWEEP)


async def quarantine(
    ctx: Context, session: AsyncSession, run_id: UUID, client_id: UUID, why: str
) -> None:
    """No further work of this run for a client whose update was implausible: what was wrong with
    it once would be wrong again, and each attempt costs the site epsilon.
    """
    run = await _locked(session, run_id)
    seat = await _seat(session, run_id, client_id)
    if seat.quarantined_at is None:
        seat.quarantined_at, seat.quarantine_why = await ctx.database.now(session), why
        await withdraw(ctx, session, run, client_id, f"quarantined: {why}")
        await audit.record(
            session, "client-quarantined", None, run_id=run.id, client_id=client_id, why=why
        )


async def withdraw(
    ctx: Context, session: AsyncSession, run: Run, client_id: UUID, reason: str
) -> None:
    """End the client's open attempt, if it has one. The run's row must be locked."""
    at = await moment.newest(ctx, session, run)
    if at is not None and at.row.state not in TERMINAL:
        await session.flush()
        await orders.lose_open(at, reason, client_id)
    log.info("client_withdrawn", run_id=str(run.id), client_id=str(client_id), reason=reason)
    await ring(session, TOPIC_SWEEP)


async def _seat(session: AsyncSession, run_id: UUID, client_id: UUID) -> RunClient:
    seat = await session.get(RunClient, (run_id, client_id), with_for_update={"key_share": True})
    if seat is None:
        raise NotFound("there is no such run, or the client takes no part in it")
    return seat
