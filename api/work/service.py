"""Orders under leases: handed out, renewed, given back.

A lease token is derived from the attempt's row, so a client that restarted gets the same order
with the same token again, and an attempt that was replaced can never be confused with the new one.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal, read_lease
from api.clients import repository as clients
from api.consents import repository as consents
from api.context import Context
from api.db.engine import TOPIC_SWEEP, ring
from api.db.run_models import WorkItem
from api.ledger import service as ledger
from api.problems import InvalidRequest, LeaseLost, NotFound, WorkGone, WorkLeased
from api.runs import repository as runs
from api.runs.specs import spec_of
from api.work import assignment, repository
from core.wire.messages import LEASE_HEADER, LeaseRenewal, WorkFailure, WorkOrder

log = structlog.get_logger(__name__)
_GONE = "the attempt is over; poll for new work"


async def _lease(
    session: AsyncSession, who: Principal, work: WorkItem, order: WorkOrder, now: datetime
) -> None:
    first = work.leased_at is None
    work.state = "leased"
    work.leased_at = work.leased_at or now
    work.lease_expires = now + timedelta(seconds=order.lease_s)
    await session.flush()
    # Nobody is woken: a lease changes nothing before its end, which the sweeper sees by itself.
    if first:
        await _told(session, "work-leased", who, work)
    log.info("work_leased", work_id=str(work.id), client=order.client, round=order.round_number)


async def _told(
    session: AsyncSession, kind: str, who: Principal, work: WorkItem, **facts: Any
) -> None:
    await audit.record(
        session,
        kind,
        who,
        run_id=work.run_id,
        round_number=work.round_number,
        client_id=work.client_id,
        work=str(work.id),
        attempt=work.attempt,
        **facts,
    )


async def may_have_work(ctx: Context, client_id: UUID) -> bool:
    """Whether ``poll`` is worth a transaction. Most polls of most clients find nothing."""
    return bool(await ctx.database.glance(repository.OFFERED, client_id=client_id))


async def poll(
    ctx: Context, who: Principal, client_id: UUID, run_id: UUID | None = None
) -> WorkOrder | None:
    """The client's next order (of one run), leased from now; one that it holds comes again."""
    told = audit.row("work-leased", who)
    leased = await repository.lease_next(ctx.database, client_id, run_id, told)
    if leased is None:
        return None
    of = await assignment.common(ctx.database, leased)
    log.info("work_leased", work_id=str(leased.id), client=leased.client, round=leased.round_number)
    sums = await assignment.sum_order(ctx.database, leased, leased.client)
    return assignment.order(of, leased, leased.client, leased.position, ctx.settings.pepper, sums)


async def claim(ctx: Context, session: AsyncSession, who: Principal, work_id: UUID) -> WorkOrder:
    """A managed client's order for a worker. Messages may come twice: only one claim succeeds."""
    work = await repository.locked(session, work_id)
    client = await clients.one(session, work.client_id) if work is not None else None
    if work is None or client is None or not client.managed:
        raise NotFound("there is no such work of a managed client")
    if work.state == "leased":
        raise WorkLeased("another worker holds the lease", mend="Drop this message.")
    if work.state != "ready":
        raise WorkGone(f"the work is {work.state}", mend="Drop this message.")
    run = await runs.one(session, work.run_id)
    if run is None or run.state == "paused":
        raise WorkGone("the run is paused", mend="Drop this message; a new one follows.")
    if not await consents.has_approved(session, work.run_id, client.id):
        raise WorkGone("the site has not approved the run", mend="Drop this message.")
    position = await runs.position(session, work.run_id, client.id)
    if position is None:
        raise RuntimeError(f"work {work.id} is of a client without a place in its run")
    of = await assignment.common(ctx.database, work)
    sums = await assignment.sum_order(ctx.database, work, client.name)
    order = assignment.order(of, work, client.name, position, ctx.settings.pepper, sums)
    await _lease(session, who, work, order, await ctx.database.now(session))
    return order


async def own(session: AsyncSession, who: Principal, work_id: UUID) -> WorkItem:
    """The work, locked, if the caller may act on it: a client on its own, a worker on that of
    managed clients. To anybody else it does not exist.
    """
    work = await repository.locked(session, work_id)
    client = await clients.one(session, work.client_id) if work is not None else None
    mine = client is not None and (
        client.managed if who.scope == "worker" else client.id == who.client_id
    )
    if work is None or not mine:
        raise NotFound("there is no such work, or it is not yours")
    return work


def check_lease(ctx: Context, work: WorkItem, given: str | None) -> None:
    """The header must be this attempt's lease, and the attempt must not be over. A lease whose
    time has passed holds until the sweeper declares it lost.
    """
    if given is None:
        raise InvalidRequest("the lease token is missing", field=LEASE_HEADER)
    if read_lease(given, ctx.settings.pepper) != (work.id, work.attempt):
        raise LeaseLost("this lease token is not of this attempt", mend=_GONE)
    if work.state != "leased":
        raise LeaseLost(f"the lease has ended: the attempt is {work.state}", mend=_GONE)


async def renew(
    ctx: Context, session: AsyncSession, who: Principal, work_id: UUID, given: str | None
) -> LeaseRenewal:
    work = await own(session, who, work_id)
    check_lease(ctx, work, given)
    run = await runs.one(session, work.run_id)
    if run is None:
        raise NotFound("the run vanished")
    lease_s = spec_of(run).plan.round.lease_s
    work.lease_expires = await ctx.database.now(session) + timedelta(seconds=lease_s)
    return LeaseRenewal(lease_s=lease_s)


async def give_back(
    ctx: Context,
    session: AsyncSession,
    who: Principal,
    work_id: UUID,
    given: str | None,
    failure: WorkFailure,
) -> None:
    """The attempt ends and its reservation is lost. The sweeper issues another one, or not."""
    work = await own(session, who, work_id)
    check_lease(ctx, work, given)
    work.state = "refused" if failure.code == "plan-refused" else "lost"
    work.reason = failure.code
    work.finished_at = await ctx.database.now(session)
    if work.reservation_id is None:
        raise RuntimeError(f"leased work {work.id} has no reservation")
    await ledger.settle(session, work.reservation_id, "lost")
    await _told(session, "work-returned", who, work, code=failure.code)
    await ring(session, TOPIC_SWEEP)
    log.info("work_given_back", work_id=str(work.id), code=failure.code)
