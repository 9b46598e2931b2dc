"""Accepting an update: checked, stored, then counted in ONE transaction.

Idempotent by content: the same bytes again get the same receipt, whatever has become of the round;
other bytes are refused. The store is written before the commit, so a row never names bytes that
are not there (a crash in between leaves an object that nobody names, which is harmless).
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal, read_lease
from api.clients import repository as clients
from api.context import Context
from api.db.engine import TOPIC_SWEEP, ring
from api.db.run_models import Round, Update, WorkItem
from api.ledger import service as ledger
from api.problems import InvalidRequest, LeaseLost, NotFound, RoundClosed, UpdateConflict
from api.rounds import repository as rounds
from api.rounds.facts import gather
from api.runs import repository as runs
from api.updates import rejections, repository
from api.updates.target import Target
from api.work import repository as works
from core.errors import UpdateRejected
from core.federation import rounds as machine
from core.federation.plan import RunSpec
from core.federation.updates import check_update, expectation
from core.storage import sha256_of
from core.wire.messages import LEASE_HEADER, UpdateReceipt

log = structlog.get_logger(__name__)


def _receipt(update: Update) -> UpdateReceipt:
    return UpdateReceipt(
        update_id=str(update.update_id),
        run_id=str(update.run_id),
        round_number=update.round_number,
        client_id=str(update.client_id),
        digest=update.digest,
        size=update.size,
    )


async def target(
    ctx: Context,
    session: AsyncSession,
    who: Principal,
    run_id: UUID,
    number: int,
    update_id: UUID,
    lease: str | None,
) -> Target:
    """Who sends this and what it must look like. A client token speaks for its client; a worker
    token for the managed client whose lease it shows.
    """
    if lease is None:
        raise InvalidRequest("the lease token is missing", field=LEASE_HEADER)
    named = read_lease(lease, ctx.settings.pepper)
    work = await works.one(session, named[0]) if named is not None else None
    if who.client_id is not None:
        client_id = who.client_id
    elif work is None:
        raise LeaseLost("this lease token is not known here")
    else:
        client_id = work.client_id
        client = await clients.one(session, client_id)
        if client is None or not client.managed:
            raise NotFound("there is no such work of a managed client")
    run = await runs.one(session, run_id)
    row = await rounds.one(session, run_id, number)
    if run is None or row is None or not await runs.takes_part(session, run_id, client_id):
        raise NotFound("there is no such round, or you take no part in it")
    matches = (
        work is not None
        and (work.run_id, work.round_number, work.client_id) == (run_id, number, client_id)
        and named == (work.id, work.attempt)
    )
    spec = RunSpec.model_validate(run.spec)
    return Target(
        who=who,
        run=run,
        row=row,
        spec=spec,
        client_id=client_id,
        update_id=update_id,
        work_id=work.id if work is not None and matches else None,
        expected=expectation(spec, number),
    )


async def _known(session: AsyncSession, to: Target, digest: str) -> UpdateReceipt | None:
    """The receipt of the same bytes; ``UpdateConflict`` for others; None if there is nothing."""
    before = await repository.existing(
        session,
        run_id=to.row.run_id,
        number=to.row.number,
        client_id=to.client_id,
        update_id=to.update_id,
    )
    if before is None:
        return None
    here = (before.run_id, before.round_number) == (to.row.run_id, to.row.number)
    if here and before.digest == digest:
        return _receipt(before)
    raise UpdateConflict(
        "another update of this client counts already in this round"
        if here
        else "this update id was used for another round",
        accepted_digest=before.digest,
    )


async def _admit(
    ctx: Context, session: AsyncSession, to: Target, row: Round, work: WorkItem | None
) -> WorkItem:
    """The state machine's word on an update that arrives now."""
    live = work is not None and work.state == "leased"
    now = await ctx.database.now(session)
    facts = gather(to.spec, to.run, row, (), now, lease_live=live)
    decision = machine.decide(machine.RoundState(row.state), machine.RoundEvent.UPDATE, facts)
    if isinstance(decision, machine.Accept) and work is not None:
        return work
    if isinstance(decision, machine.Reject) and decision.code == "round-closed":
        raise RoundClosed(f"round {row.number} is {row.state}", mend="Poll for new work.")
    state = "is not of this client and round" if work is None else f"has ended: {work.state}"
    raise LeaseLost(f"the lease {state}", mend="Poll for new work.")


async def receive(ctx: Context, to: Target, body: bytes) -> tuple[UpdateReceipt, bool]:
    """The receipt, and whether the update is new. Raises an ``UpdateRejected`` or a conflict."""
    digest = await asyncio.to_thread(sha256_of, body)
    async with ctx.database.read() as session:
        if known := await _known(session, to, digest):
            return known, False
        work = await works.one(session, to.work_id) if to.work_id is not None else None
        row = await rounds.one(session, to.row.run_id, to.row.number)
        await _admit(ctx, session, to, row or to.row, work)
    async with ctx.checks:
        try:
            await asyncio.to_thread(check_update, body, to.expected)
        except UpdateRejected as error:
            await rejections.refused(ctx, to, digest, len(body), error)
            raise
        stored = await asyncio.to_thread(ctx.store.put, body)
    try:
        async with ctx.database.write() as session:
            return await _count(ctx, session, to, stored.digest, stored.size)
    except IntegrityError:
        # Two identical requests raced past the first look: the other one has just won.
        async with ctx.database.read() as session:
            if known := await _known(session, to, digest):
                return known, False
        raise


async def _count(
    ctx: Context, session: AsyncSession, to: Target, digest: str, size: int
) -> tuple[UpdateReceipt, bool]:
    """The one transaction in which an update begins to count."""
    row = await rounds.shared(session, to.row.run_id, to.row.number)
    work = await works.locked(session, to.work_id) if to.work_id is not None else None
    if row is None:
        raise NotFound("the round vanished")
    if known := await _known(session, to, digest):
        return known, False
    work = await _admit(ctx, session, to, row, work)
    if work.reservation_id is None:
        raise RuntimeError(f"leased work {work.id} has no reservation")
    await repository.remember_object(session, digest, size)
    update = await repository.add(session, work, to.update_id, digest, size)
    work.state, work.finished_at = "done", await ctx.database.now(session)
    await ledger.settle(session, work.reservation_id, "commit")
    await ring(session, TOPIC_SWEEP)
    log.info(
        "update_accepted",
        run_id=str(work.run_id),
        round=work.round_number,
        client_id=str(work.client_id),
        attempt=work.attempt,
        size=size,
    )
    return _receipt(update), True
