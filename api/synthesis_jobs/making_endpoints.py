"""HTTP of synthesis jobs, for the workers that make the files."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request

from api import examples
from api.auth import WorkerOnly
from api.context import Ctx
from api.openapi import answers, example
from api.synthesis_jobs import making
from api.work.endpoints import Lease
from core.receipts.content import Content
from core.receipts.signing import Signed
from core.wire import synthesis as wire
from core.wire.messages import JobFailure, LeaseRenewal

router = APIRouter(prefix="/v1/synthesis-jobs", tags=["jobs"])


@router.post(
    "/{job_id}/claim",
    operation_id="claimSynthesisJob",
    summary="Claim a synthesis job",
    description="A message may come twice: the second claim is refused.",
    responses=answers(
        200,
        examples.SYNTHESIS_WORK,
        "The job, leased.",
        "not-found",
        "not-private",
        "client-withdrawn",
        "work-leased",
        "work-gone",
    ),
)
async def claim(
    ctx: Ctx,
    who: WorkerOnly,
    request: Request,
    job_id: UUID,
    body: Annotated[wire.Claim, example(examples.SYNTHESIS_CLAIM)],
) -> wire.SynthesisJob:
    state = request.app.state
    return await making.claim(ctx, who, state.models, state.generators, state.keyring, job_id, body)


@router.post(
    "/{job_id}/parts",
    operation_id="reportSynthesisPart",
    summary="Report a stored part",
    description="In order; the same part again is accepted. The lease starts again from now.",
    responses=answers(
        200,
        examples.RENEWAL,
        "Noted.",
        "not-found",
        "lease-lost",
        "work-gone",
        "conflict",
        "part-missing",
    ),
)
async def part(
    ctx: Ctx,
    who: WorkerOnly,
    job_id: UUID,
    body: Annotated[wire.Part, example(examples.SYNTHESIS_PART)],
    lease: Lease = None,
) -> LeaseRenewal:
    return await making.part(ctx, job_id, lease, body)


@router.post(
    "/{job_id}/close",
    operation_id="closeSynthesisReceipt",
    summary="Close the receipt",
    description="Names the content of all rows; the signed receipt goes into the file's end.",
    responses=answers(
        200, examples.SIGNED_RECEIPT, "The receipt.", "not-found", "lease-lost", "work-gone",
        "conflict",
    ),
)  # fmt: skip
async def close(
    ctx: Ctx,
    who: WorkerOnly,
    request: Request,
    job_id: UUID,
    body: Annotated[Content, example(examples.ROWS_CONTENT)],
    lease: Lease = None,
) -> Signed:
    return await making.close(ctx, request.app.state.keyring, job_id, lease, body)


@router.post(
    "/{job_id}/complete",
    operation_id="completeSynthesisJob",
    summary="Complete a synthesis job",
    description="All parts are stored. The same again is accepted.",
    status_code=204,
    responses=answers(204, None, "Done.", "not-found", "lease-lost", "work-gone", "conflict"),
)
async def complete(
    ctx: Ctx,
    who: WorkerOnly,
    job_id: UUID,
    body: Annotated[wire.FileMade, example(examples.SYNTHESIS_FILE_MADE)],
    lease: Lease = None,
) -> None:
    async with ctx.database.write() as session:
        done = await making.complete(ctx, session, who, job_id, lease, body)
    if done is not None:
        ctx.meters.rows.labels(done.format, "file").inc(done.rows)


@router.post(
    "/{job_id}/fail",
    operation_id="failSynthesisJob",
    summary="Give a synthesis job back",
    description="It is tried again while attempts last.",
    status_code=204,
    responses=answers(204, None, "Taken back.", "not-found", "lease-lost", "work-gone"),
)
async def fail(
    ctx: Ctx,
    who: WorkerOnly,
    job_id: UUID,
    body: Annotated[JobFailure, example(examples.JOB_FAILURE)],
    lease: Lease = None,
) -> None:
    async with ctx.database.write() as session:
        await making.fail(ctx, session, who, job_id, lease, body)
