"""Accepting an update: checked, stored, then counted in ONE transaction.

Idempotent by content: the same bytes again get the same receipt, whatever has become of the round;
other bytes are refused. The store is written before the commit, so a row never names bytes that
are not there (a crash in between leaves an object that nobody names, which is harmless).
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal, read_lease
from api.context import Context
from api.db.engine import TOPIC_SWEEP, ring
from api.db.run_models import Round, Run, WorkItem
from api.problems import InvalidRequest, LeaseLost, NotFound, RoundClosed, UpdateConflict
from api.rounds import repository as rounds
from api.rounds.facts import gather
from api.runs.specs import expected_of, spec_by_digest
from api.secure_sums import vectors
from api.secure_sums.vectors import MaskedTarget
from api.updates import rejections, repository
from api.updates.target import Target
from core.errors import UpdateRejected
from core.federation import rounds as machine
from core.federation.plan import RunSpec
from core.federation.updates import check_update
from core.storage import ObjectStore, Stored, sha256_of
from core.wire.messages import LEASE_HEADER, UpdateReceipt


def _receipt(to: Target, update_id: UUID, digest: str, size: int) -> UpdateReceipt:
    return UpdateReceipt(
        update_id=str(update_id),
        run_id=str(to.run_id),
        round_number=to.number,
        client_id=str(to.client_id),
        digest=digest,
        size=size,
    )


async def target(
    ctx: Context, who: Principal, run_id: UUID, number: int, update_id: UUID, lease: str | None
) -> Target:
    """Who sends this and what it must look like. A client token speaks for its client; a worker
    token for the managed client whose lease it shows.
    """
    if lease is None:
        raise InvalidRequest("the lease token is missing", field=LEASE_HEADER)
    named = read_lease(lease, ctx.settings.pepper)
    (found,) = await ctx.database.glance(
        repository.TARGET,
        run_id=run_id,
        number=number,
        update_id=update_id,
        work_id=named[0] if named is not None else None,
        client_id=who.client_id,
    )
    digest, round_state, takes_part, work_id, *place, attempt, state, managed, before = found
    client_id = place[2] if who.client_id is None else who.client_id
    if client_id is None:
        raise LeaseLost("this lease token is not known here")
    if who.client_id is None and not managed:
        raise NotFound("there is no such work of a managed client")
    if round_state is None or not takes_part:
        raise NotFound("there is no such round, or you take no part in it")
    matches = place == [run_id, number, client_id] and named == (work_id, attempt)
    spec = await spec_by_digest(ctx.database, run_id, digest)
    return Target(
        who=who,
        run_id=run_id,
        number=number,
        spec=spec,
        client_id=client_id,
        update_id=update_id,
        work_id=work_id if matches else None,
        round_state=round_state,
        work_state=state or "",
        attempt=attempt or 0,
        sent_before=before,
        expected=expected_of(digest, spec, number),
        masked=await _masked(ctx, spec, run_id, number, client_id, ordered=matches),
    )


async def _masked(
    ctx: Context, spec: RunSpec, run_id: UUID, number: int, client_id: UUID, *, ordered: bool
) -> MaskedTarget | None:
    if not spec.is_secure(number):
        return None
    async with ctx.database.read() as session:
        return await vectors.target(session, run_id, number, client_id, ordered=ordered)


async def _known(session: AsyncSession, to: Target, digest: str) -> UpdateReceipt | None:
    """The receipt of the same bytes; ``UpdateConflict`` for others; None if there is nothing."""
    before = await repository.existing(
        session,
        run_id=to.run_id,
        number=to.number,
        client_id=to.client_id,
        update_id=to.update_id,
    )
    if before is None:
        return None
    here = (before.run_id, before.round_number) == (to.run_id, to.number)
    if here and before.digest == digest:
        return _receipt(to, before.update_id, before.digest, before.size)
    raise UpdateConflict(
        "another update of this client counts already in this round"
        if here
        else "this update id was used for another round",
        accepted_digest=before.digest,
    )


def _admit(to: Target, round_state: str, work_state: str) -> None:
    """The state machine's word on an update that arrives now; an exception unless it counts."""
    row = Round(run_id=to.run_id, number=to.number, state=round_state, extended=False)
    live = to.work_id is not None and work_state == "leased"
    facts = gather(to.spec, Run(id=to.run_id), row, (), datetime.now(UTC), lease_live=live)
    decision = machine.decide(machine.RoundState(round_state), machine.RoundEvent.UPDATE, facts)
    if isinstance(decision, machine.Accept):
        return
    if isinstance(decision, machine.Reject) and decision.code == "round-closed":
        raise RoundClosed(f"round {to.number} is {round_state}", mend="Poll for new work.")
    state = "is not of this client and round" if to.work_id is None else f"has ended: {work_state}"
    raise LeaseLost(f"the lease {state}", mend="Poll for new work.")


async def receive(ctx: Context, to: Target, body: bytes) -> tuple[UpdateReceipt, bool]:
    """The receipt, and whether the update is new. Raises an ``UpdateRejected`` or a conflict."""
    if to.sent_before:
        digest = await asyncio.to_thread(sha256_of, body)
        async with ctx.database.read() as session:
            if known := await _known(session, to, digest):
                return known, False
    # Refused now, it costs neither a check nor a place in the store. What counts is judged below.
    _admit(to, to.round_state, to.work_state)
    async with ctx.checks:
        try:
            stored, attestation = await asyncio.to_thread(_checked, ctx.store, body, to)
        except UpdateRejected as error:
            digest = await asyncio.to_thread(sha256_of, body)
            await rejections.refused(ctx, to, digest, len(body), error)
            raise
    try:
        many_out = await _count(ctx, to, stored, attestation)
    except psycopg.IntegrityError:
        # Two identical requests raced past the first look: the other one has just won.
        async with ctx.database.read() as session:
            if known := await _known(session, to, stored.digest):
                return known, False
            if await repository.was_erased(session, stored.digest):
                raise UpdateConflict(
                    "these bytes were sent before and have been erased since",
                    mend="Every update is noised afresh: send a new one.",
                ) from None
        raise
    if many_out is None:
        return await _not_counted(ctx, to, stored.digest), False
    ctx.meters.updates_accepted.inc()
    if not many_out:
        await _ring_if_last(ctx, to)
    return _receipt(to, to.update_id, stored.digest, stored.size), True


def _checked(store: ObjectStore, body: bytes, to: Target) -> tuple[Stored, str | None]:
    """Where it is kept; of a masked vector what its client has signed of the masks, too."""
    attestation = None
    if to.masked is None:
        check_update(body, to.expected)
    else:
        attestation = to.masked.check(body)
    return store.put(body), attestation


async def _ring_if_last(ctx: Context, to: Target) -> None:
    """Wake the sweeper when nobody is left to wait for. Looked at after the commit, so that of two
    last updates at once the later one sees both. (A ring for every update would make the sweeper
    look at the whole round for each.)
    """
    if not await ctx.database.glance(repository.STILL_OUT, run_id=to.run_id, number=to.number):
        async with ctx.database.write() as session:
            await ring(session, TOPIC_SWEEP)


async def _count(ctx: Context, to: Target, stored: Stored, attestation: str | None) -> bool | None:
    """The one transaction in which an update begins to count (``repository.count``).

    While its work is leased no other update of this client and round can count (one live attempt,
    one update for each), so that only who is refused has to be compared with what counts already.
    """
    if to.work_id is None:
        return None
    told = audit.row(
        "update-accepted",
        to.who,
        run_id=to.run_id,
        round_number=to.number,
        client_id=to.client_id,
        digest=stored.digest,
        size=stored.size,
        attempt=to.attempt,
    )
    return await repository.count(
        ctx.database,
        update_id=to.update_id,
        run_id=to.run_id,
        number=to.number,
        work_id=to.work_id,
        open_states=machine.TAKE_UPDATES,
        digest=stored.digest,
        size=stored.size,
        attestation=attestation,
        event=told,
    )


async def _not_counted(ctx: Context, to: Target, digest: str) -> UpdateReceipt:
    """Why nothing was counted: it counts already (its receipt), or the exception that says so."""
    async with ctx.database.read() as session:
        if known := await _known(session, to, digest):
            return known
        row = await rounds.one(session, to.run_id, to.number)
        work = None if to.work_id is None else await session.get(WorkItem, to.work_id)
    _admit(to, to.round_state if row is None else row.state, "" if work is None else work.state)
    raise LeaseLost("the lease came and went meanwhile", mend="Poll for new work.")
