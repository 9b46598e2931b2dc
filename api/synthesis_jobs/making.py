"""Synthesis jobs as workers see them: claimed, written part by part, closed, completed or failed.

Every report carries the lease token of one attempt: a worker whose lease has ended, or whose job
was cancelled, is told so at its next part and changes nothing. A killed worker's job is handed out
again; the same machine makes the same parts, under the same digests.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal, lease_token, read_lease
from api.context import Context
from api.db.engine import TOPIC_SWEEP, ring
from api.db.synthesis_models import SynthesisJob, SynthesisPart
from api.jobs.attempts import after_failure
from api.problems import (
    Conflict,
    InvalidRequest,
    LeaseLost,
    NotFound,
    PartMissing,
    WorkGone,
    WorkLeased,
)
from api.receipts import service as receipts
from api.receipts.keys import Keyring
from api.synthesis.models import Generators, Models
from api.synthesis_jobs import repository
from api.synthesis_jobs.service import told
from core.errors import ClientWithdrawn
from core.receipts.content import Content
from core.receipts.opening import opening
from core.receipts.signing import Signed
from core.synthesis.request import SynthesisRequest
from core.wire import synthesis as wire
from core.wire.messages import LEASE_HEADER, JobFailure, LeaseRenewal

log = structlog.get_logger(__name__)
_DELETED_AT_ONCE = 20
_FINAL = ("not-private", "client-withdrawn", "object-missing", "object-corrupt")


async def claim(
    ctx: Context,
    who: Principal,
    models: Models,
    generators: Generators,
    keyring: Keyring,
    job_id: UUID,
    body: wire.Claim,
) -> wire.SynthesisJob:
    async with ctx.database.read() as session:
        seen = await session.get(SynthesisJob, job_id)
    if seen is None:
        raise NotFound("there is no such job")
    found = await models.published(ctx, who, str(seen.run_id), seen.round_number)
    request = SynthesisRequest.model_validate(seen.request)
    try:
        found.must_allow(request.mixture)
    except ClientWithdrawn as error:
        await _give_up(ctx, who, job_id, f"{error.code}: {error.message}")
        raise
    key = await keyring.active()
    async with ctx.heavy:
        generator = await generators.get(ctx, found)
        codes = await asyncio.to_thread(generator.codes, request)
    receipt = opening(found.facts, generator, request, seen.seed, codes, body.made_with)
    async with ctx.database.write() as session:
        job = await _present(session, job_id)
        if job.state == "leased":
            raise WorkLeased("another worker holds the lease", mend="Drop this message.")
        if job.state != "ready":
            raise WorkGone(f"the job is {job.state}", mend="Drop this message.")
        await repository.remember_receipt(session, receipt, job)
        until = await _until(ctx, session)
        job.state, job.attempt, job.rows_done = "leased", job.attempt + 1, 0
        job.receipt_id, job.reason, job.lease_expires = receipt.id, "", until
        await told(session, "synthesis-job-claimed", who, job, attempt=job.attempt)
        attempt = job.attempt
    return wire.SynthesisJob(
        job_id=str(job_id),
        lease_token=lease_token(job_id, attempt, ctx.settings.pepper),
        lease_s=ctx.settings.job_lease_s,
        spec=found.spec,
        frame=found.model.frame.digest,
        weights=found.model.weights.digest,
        request=request,
        seed=seen.seed,
        format=seen.format,
        receipt=key.sign(receipt).model_dump(mode="json"),
    )


async def _until(ctx: Context, session: AsyncSession) -> datetime:
    return await ctx.database.now(session) + timedelta(seconds=ctx.settings.job_lease_s)


async def _present(session: AsyncSession, job_id: UUID) -> SynthesisJob:
    job = await repository.locked(session, job_id)
    if job is None:
        raise NotFound("there is no such job")
    return job


async def _give_up(ctx: Context, who: Principal, job_id: UUID, reason: str) -> None:
    async with ctx.database.write() as session:
        job = await _present(session, job_id)
        if job.state == "ready":
            job.state, job.reason = "failed", reason
            job.finished_at = await ctx.database.now(session)
            await told(session, "synthesis-job-failed", who, job, reason=reason, state=job.state)


async def _held(
    ctx: Context, session: AsyncSession, job_id: UUID, given: str | None
) -> SynthesisJob:
    """The job, locked, if the header is the lease of its current attempt."""
    if given is None:
        raise InvalidRequest("the lease token is missing", field=LEASE_HEADER)
    job = await _present(session, job_id)
    if read_lease(given, ctx.settings.pepper) != (job.id, job.attempt):
        raise LeaseLost("this lease token is not of the job's current attempt")
    return job


def _must_be_leased(job: SynthesisJob) -> None:
    if job.state in ("cancelled", "expired"):
        raise WorkGone(f"the job is {job.state}", mend="Make no more of it.")
    if job.state != "leased":
        raise LeaseLost(f"the lease has ended: the job is {job.state}")


async def part(ctx: Context, job_id: UUID, given: str | None, body: wire.Part) -> LeaseRenewal:
    """The next part; the same one again is accepted. The lease starts again from now.

    A part of a job that was cancelled meanwhile is noted before the worker is told, so that its
    bytes are deleted with the others.
    """
    async with ctx.database.write() as session:
        await repository.lock_parts(session)
        job = await _held(ctx, session, job_id, given)
        count, _ = await repository.summed(session, job.id, job.attempt)
        known = await repository.part(session, job.id, job.attempt, body.number)
        if known is not None and (known.digest, known.size) != (body.digest, body.size):
            raise Conflict(f"part {body.number} is another one", field="digest")
        if known is None and job.state not in ("leased", "cancelled"):
            _must_be_leased(job)
        if known is None and body.number != count:
            raise Conflict(f"part {count} comes next, not {body.number}", field="number")
        if body.rows > job.rows:
            raise InvalidRequest(f"the file has {job.rows} rows", field="rows")
        if not await asyncio.to_thread(ctx.store.exists, body.digest):
            raise PartMissing("the store does not hold this part", mend="Store it again.")
        if known is None:
            session.add(
                SynthesisPart(
                    job_id=job.id,
                    attempt=job.attempt,
                    number=body.number,
                    digest=body.digest,
                    size=body.size,
                )
            )
        state = job.state
        if state == "leased":
            job.rows_done = max(job.rows_done, body.rows)
            job.lease_expires = await _until(ctx, session)
    if state != "leased":
        _must_be_leased(job)
    return LeaseRenewal(lease_s=ctx.settings.job_lease_s)


async def close(
    ctx: Context, keyring: Keyring, job_id: UUID, given: str | None, content: Content
) -> Signed:
    """The signed receipt of the rows, which a file's end may hold."""
    async with ctx.database.write() as session:
        job = await _held(ctx, session, job_id, given)
        _must_be_leased(job)
        if content.n != job.rows:
            raise Conflict(f"the file has {job.rows} rows, not {content.n}", field="n")
        receipt_id = job.receipt_id or ""
        job.lease_expires = await _until(ctx, session)
    receipt = await receipts.one(ctx, receipt_id)
    await receipts.close(ctx, receipt, content)
    key = await keyring.active()
    signed: Signed = key.sign(receipt.model_copy(update={"content": content}))
    return signed


async def complete(
    ctx: Context,
    session: AsyncSession,
    who: Principal,
    job_id: UUID,
    given: str | None,
    body: wire.FileMade,
) -> SynthesisJob | None:
    """The job that is now done; None if it was before: idempotent for the same file."""
    job = await _held(ctx, session, job_id, given)
    stored = await repository.summed(session, job.id, job.attempt)
    if stored != (body.parts, body.size):
        raise Conflict(
            f"{stored[0]} parts of {stored[1]} bytes are stored, not {body.parts} of {body.size}"
        )
    if job.state == "done":
        return None
    _must_be_leased(job)
    now = await ctx.database.now(session)
    job.state, job.size, job.rows_done, job.finished_at = "done", body.size, job.rows, now
    job.expires_at = now + timedelta(seconds=ctx.settings.synthesis_job_ttl_s)
    await told(
        session, "synthesis-job-done", who, job, n=job.rows, size=body.size, receipt=job.receipt_id
    )
    log.info("file_made", job_id=str(job.id), rows=job.rows, bytes=body.size, attempt=job.attempt)
    return job


async def fail(
    ctx: Context,
    session: AsyncSession,
    who: Principal,
    job_id: UUID,
    given: str | None,
    failure: JobFailure,
) -> None:
    job = await _held(ctx, session, job_id, given)
    _must_be_leased(job)
    reason = f"{failure.code}: {failure.detail}".removesuffix(": ")
    await _again(ctx, session, who, job, reason, final=failure.code in _FINAL)


async def _again(
    ctx: Context,
    session: AsyncSession,
    who: Principal | None,
    job: SynthesisJob,
    reason: str,
    *,
    final: bool = False,
) -> None:
    """Ready for another attempt after a pause, or failed for good."""
    now = await ctx.database.now(session)
    after_failure(job, reason, now, most=ctx.settings.job_attempts, final=final)
    await told(
        session, "synthesis-job-failed", who, job, reason=reason, state=job.state,
        attempt=job.attempt,
    )  # fmt: skip
    await ring(session, TOPIC_SWEEP)


async def look_after(ctx: Context) -> None:
    """What time asks for: leases that ended, files that have had their time, bytes that nobody
    wants any more (one batch).
    """
    async with ctx.database.write() as session:
        now = await ctx.database.now(session)
        for job in await repository.overdue(session, now):
            await _again(ctx, session, None, job, "the worker's lease ended")
        for job in await repository.stale(session, now):
            job.state = "expired"
            await told(session, "synthesis-job-expired", None, job)
    await _delete_unwanted(ctx)


async def _delete_unwanted(ctx: Context) -> None:
    """Bytes first, their rows with the commit: after a crash in between they are deleted again."""
    async with ctx.database.read() as session:
        if not await repository.unwanted(session, 1):
            return
    async with ctx.database.write() as session:
        await repository.lock_parts(session, deleting=True)
        for one in await repository.unwanted(session, _DELETED_AT_ONCE):
            if await repository.only_here(session, one):
                await asyncio.to_thread(ctx.store.delete, one.digest)
            await repository.forget(session, one)
