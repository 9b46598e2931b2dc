"""HTTP of the coordinator's jobs, for its own workers."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter

from api import examples
from api.auth import WorkerOnly
from api.context import Ctx
from api.jobs import service
from api.openapi import answers, example
from api.work.endpoints import Lease
from core.wire.messages import AggregateJob, AggregateResult, JobFailure, LeaseRenewal

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "/{job_id}/claim",
    operation_id="claimJob",
    summary="Claim a job",
    description="A message may come twice: the second claim is refused.",
    responses=answers(
        200, examples.JOB, "The job, leased.", "not-found", "work-leased", "work-gone"
    ),
)
async def claim(ctx: Ctx, who: WorkerOnly, job_id: UUID) -> AggregateJob:
    async with ctx.database.write() as session:
        return await service.claim(ctx, session, who, job_id)


@router.post(
    "/{job_id}/renew",
    operation_id="renewJob",
    summary="Renew a job's lease",
    description="The lease starts again from now.",
    responses=answers(200, examples.RENEWAL, "Renewed.", "not-found", "lease-lost"),
)
async def renew(ctx: Ctx, who: WorkerOnly, job_id: UUID, lease: Lease = None) -> LeaseRenewal:
    async with ctx.database.write() as session:
        return await service.renew(ctx, session, job_id, lease)


@router.post(
    "/{job_id}/complete",
    operation_id="completeJob",
    summary="Complete a job",
    description="Names the objects that the worker has stored (a replay: that it found, and has "
    "not stored). The same result again is accepted.",
    status_code=204,
    responses=answers(204, None, "Done.", "not-found", "lease-lost", "conflict"),
)
async def complete(
    ctx: Ctx,
    who: WorkerOnly,
    job_id: UUID,
    body: Annotated[AggregateResult, example(examples.JOB_RESULT)],
    lease: Lease = None,
) -> None:
    await service.check_stored(ctx, job_id, body)
    async with ctx.database.write() as session:
        done = await service.complete(ctx, session, who, job_id, lease, body)
    if done is not None and done.seconds is not None:
        ctx.meters.sums_s.labels(done.kind).observe(done.seconds)


@router.post(
    "/{job_id}/fail",
    operation_id="failJob",
    summary="Give a job back",
    description="It is tried again while attempts last; then its round and run fail.",
    status_code=204,
    responses=answers(204, None, "Taken back.", "not-found", "lease-lost"),
)
async def fail(
    ctx: Ctx,
    who: WorkerOnly,
    job_id: UUID,
    body: Annotated[JobFailure, example(examples.JOB_FAILURE)],
    lease: Lease = None,
) -> None:
    async with ctx.database.write() as session:
        await service.fail(ctx, session, who, job_id, lease, body)
