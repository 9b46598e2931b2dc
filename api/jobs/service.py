"""Jobs of the coordinator's worker: claimed, renewed, completed or failed, under leases.

Summing a round again gives the same bytes, so a job may be repeated: a lease that ends makes it
ready again until its attempts are used up.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal, lease_token, read_lease
from api.context import Context
from api.db.engine import TOPIC_SWEEP, ring
from api.db.run_models import Job
from api.jobs import repository
from api.jobs.attempts import after_failure
from api.problems import Conflict, InvalidRequest, LeaseLost, NotFound, WorkGone, WorkLeased
from api.replays import service as replays
from api.rounds import repository as rounds
from api.runs import repository as runs
from api.runs.specs import spec_of
from api.secure_sums import repository as secure_sums
from api.updates.repository import remember_object
from core.wire.messages import (
    LEASE_HEADER,
    AggregateInput,
    AggregateJob,
    AggregateResult,
    JobFailure,
    LeaseRenewal,
)

log = structlog.get_logger(__name__)


# In which state a job's round must be. A replay never moves its round.
_ROUND_STATE = {"aggregate": "aggregating", "replay": "published"}
# A worker that finds these in a replay will find them again: nobody waits for more attempts.
_FINAL = ("object-missing", "object-corrupt")


async def claim(ctx: Context, session: AsyncSession, who: Principal, job_id: UUID) -> AggregateJob:
    job = await repository.locked(session, job_id)
    if job is None:
        raise NotFound("there is no such job")
    if job.state == "leased":
        raise WorkLeased("another worker holds the lease", mend="Drop this message.")
    run = await runs.one(session, job.run_id)
    row = await rounds.one(session, job.run_id, job.round_number)
    if run is None or row is None or job.state != "ready":
        raise WorkGone(f"the job is {job.state}", mend="Drop this message.")
    if row.state != _ROUND_STATE[job.kind]:  # a round that was abandoned leaves its job behind
        raise WorkGone(f"the job's round is {row.state}", mend="Drop this message.")
    spec = spec_of(run)
    model = None
    if job.round_number > 0:
        model = await rounds.model(session, run.id, None, before=job.round_number)
    updates = await rounds.updates_of(session, run.id, job.round_number)
    opened_by = await secure_sums.sum_of(session, run.id, job.round_number)
    job.state, job.attempt = "leased", job.attempt + 1
    job.lease_expires = await ctx.database.now(session) + timedelta(
        seconds=ctx.settings.job_lease_s
    )
    log.info("job_leased", job_id=str(job.id), round=job.round_number, attempt=job.attempt)
    await _told(session, "job-claimed", who, job)
    return AggregateJob(
        job_id=str(job.id),
        lease_token=lease_token(job.id, job.attempt, ctx.settings.pepper),
        lease_s=ctx.settings.job_lease_s,
        run_id=str(run.id),
        round_number=job.round_number,
        kind=spec.kind(job.round_number),
        spec=spec,
        updates=tuple(
            AggregateInput(client_id=str(update.client_id), client=name, digest=update.digest)
            for update, name in updates
        ),
        frame=None if model is None else model.frame.digest,
        weights=None if model is None else model.weights.digest,
        optimiser=None if model is None else model.optimiser_digest,
        withdrawn=await rounds.withdrawn_before(session, run.id, row.closed_at),
        transcript=None if opened_by is None else opened_by.transcript,
    )


async def _told(
    session: AsyncSession, kind: str, who: Principal | None, job: Job, **facts: Any
) -> None:
    await audit.record(
        session,
        kind,
        who,
        run_id=job.run_id,
        round_number=job.round_number,
        job=str(job.id),
        purpose=job.kind,
        attempt=job.attempt,
        **facts,
    )


async def _held(ctx: Context, session: AsyncSession, job_id: UUID, given: str | None) -> Job:
    """The job, locked, if the header is the lease of its current attempt."""
    if given is None:
        raise InvalidRequest("the lease token is missing", field=LEASE_HEADER)
    job = await repository.locked(session, job_id)
    if job is None:
        raise NotFound("there is no such job")
    if read_lease(given, ctx.settings.pepper) != (job.id, job.attempt):
        raise LeaseLost("this lease token is not of the job's current attempt")
    return job


def _must_be_leased(job: Job) -> None:
    if job.state != "leased":
        raise LeaseLost(f"the lease has ended: the job is {job.state}")


async def renew(
    ctx: Context, session: AsyncSession, job_id: UUID, given: str | None
) -> LeaseRenewal:
    job = await _held(ctx, session, job_id, given)
    _must_be_leased(job)
    now = await ctx.database.now(session)
    job.lease_expires = now + timedelta(seconds=ctx.settings.job_lease_s)
    return LeaseRenewal(lease_s=ctx.settings.job_lease_s)


async def check_stored(ctx: Context, job_id: UUID, result: AggregateResult) -> None:
    """The worker wrote to the same store: what it names must be there. A replay writes nothing."""
    async with ctx.database.read() as session:
        job = await session.get(Job, job_id)
    if job is None or job.kind == "replay":
        return
    for field, digest in (
        ("frame", result.frame.digest),
        ("weights", result.weights.digest),
        ("optimiser_digest", result.optimiser_digest),
    ):
        if not await asyncio.to_thread(ctx.store.exists, digest):
            raise InvalidRequest(
                f"the object store holds no {digest}",
                field=field,
                mend="Worker and coordinator need the same FHV_OBJECT_STORE_URL.",
            )


@dataclass(frozen=True)
class Completed:
    """A job that has just been done, and how long its last attempt took, if that is known."""

    kind: str
    seconds: float | None


async def complete(
    ctx: Context,
    session: AsyncSession,
    who: Principal,
    job_id: UUID,
    given: str | None,
    result: AggregateResult,
) -> Completed | None:
    """None if it was done already: idempotent for the same result. The sweeper publishes; a replay
    is only compared.
    """
    job = await _held(ctx, session, job_id, given)
    if job.state == "done":
        if job.result != result.model_dump(mode="json"):
            raise Conflict("the job was completed with another result")
        return None
    _must_be_leased(job)
    if job.kind == "aggregate":
        await remember_object(session, result.frame.digest, result.frame.size)
        await remember_object(session, result.weights.digest, result.weights.size)
        await remember_object(session, result.optimiser_digest, result.optimiser_size)
    job.state, job.reason = "done", ""
    job.result = result.model_dump(mode="json")
    job.finished_at = await ctx.database.now(session)
    await _told(session, "job-completed", who, job)
    if job.kind == "replay":
        await _compare(session, who, job)
    await ring(session, TOPIC_SWEEP)
    log.info("job_done", job_id=str(job.id), round=job.round_number, attempt=job.attempt)
    return Completed(job.kind, await repository.seconds_since_claim(session, job))


async def _compare(session: AsyncSession, who: Principal, job: Job) -> None:
    """A replay that finds other bytes is an alarm: software, machine or store is not what it was
    when the round was published. The published model stays.
    """
    row = await rounds.one(session, job.run_id, job.round_number)
    if row is None or replays.is_same(row, job) is True:
        return
    found = {file.file: file.found or "" for file in replays.files_of(row, job)}
    await _told(session, "replay-differs", who, job, **found)
    log.error("replay_differs", job_id=str(job.id), run_id=str(job.run_id), round=row.number)


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
    final = job.kind == "replay" and failure.code in _FINAL
    await _again(ctx, session, who, job, reason, final=final)


async def _again(
    ctx: Context,
    session: AsyncSession,
    who: Principal | None,
    job: Job,
    reason: str,
    *,
    final: bool = False,
) -> None:
    """Ready for another attempt after a pause, or failed for good."""
    now = await ctx.database.now(session)
    after_failure(job, reason, now, most=ctx.settings.job_attempts, final=final)
    await _told(session, "job-failed", who, job, reason=reason, state=job.state)
    await ring(session, TOPIC_SWEEP)
    log.warning("job_attempt_failed", job_id=str(job.id), attempt=job.attempt, reason=reason)


async def expire(ctx: Context, session: AsyncSession) -> int:
    """Take back jobs whose worker has fallen silent."""
    jobs = await repository.overdue(session, await ctx.database.now(session))
    for job in jobs:
        await _again(ctx, session, None, job, "the worker's lease ended")
    return len(jobs)
