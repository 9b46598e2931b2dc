"""HTTP of synthesis jobs, for their owners."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from api import examples
from api.auth import Scientist
from api.context import Ctx
from api.downloads import NOT_200, Sent
from api.idempotency import REPLAYED_HEADER, Key
from api.openapi import answers, example
from api.pages import DEFAULT_LIMIT, After, Limit, Page, paged
from api.synthesis_jobs import service
from core.synthesis.formats import FORMATS
from core.synthesis.request import SynthesisRequest

router = APIRouter(prefix="/v1/synthesis-jobs", tags=["synthesis"])


@router.post(
    "",
    operation_id="createSynthesisJob",
    summary="Have a file of rows made",
    description="The body of /synthesize (`format` is Parquet unless given). A worker makes the "
    "file: the same bytes as the streamed answer. Quotas are charged here.",
    status_code=202,
    responses=answers(
        202,
        examples.SYNTHESIS_JOB,
        "It will be made.",
        "not-found",
        "not-private",
        "client-withdrawn",
        "invalid-mixture",
        "unknown-mixture-client",
        "invalid-synthesis-request",
        "idempotency-key-reused",
        "quota-exceeded",
        "too-many-answers",
    ),
)
async def create(
    ctx: Ctx,
    who: Scientist,
    request: Request,
    response: Response,
    body: Annotated[SynthesisRequest, example(examples.SYNTHESIS)],
    key: Key = None,
) -> service.JobView:
    state = request.app.state
    made, replayed, left = await service.create(ctx, who, state.models, state.generators, body, key)
    response.headers["Location"] = service.path_of(made.id)
    response.headers.update(left)
    if replayed:
        response.headers[REPLAYED_HEADER] = "true"
    return made


@router.get(
    "",
    operation_id="listSynthesisJobs",
    summary="Jobs of this token",
    description="Oldest first; an administrator sees all.",
    responses=answers(200, examples.page(examples.SYNTHESIS_JOB), "One page."),
)
async def some(
    ctx: Ctx, who: Scientist, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Page[service.JobView]:
    async with ctx.database.read() as session:
        items, more = paged(await service.some(session, who, limit, after), limit)
    return Page(items=list(items), next=items[-1].id if more else None)


@router.get(
    "/{job_id}",
    operation_id="getSynthesisJob",
    summary="How far a job is",
    description="`state`, `why`, and how many of its rows are made.",
    responses=answers(200, examples.SYNTHESIS_JOB, "The job.", "not-found"),
)
async def one(ctx: Ctx, who: Scientist, job_id: UUID) -> service.JobView:
    async with ctx.database.read() as session:
        return await service.one(session, who, job_id)


@router.delete(
    "/{job_id}",
    operation_id="cancelSynthesisJob",
    summary="Give a job up",
    description="What is being made is dropped; a finished file is deleted. Repeatable. What was "
    "charged stays charged.",
    status_code=204,
    responses=answers(204, None, "Given up.", "not-found"),
)
async def cancel(ctx: Ctx, who: Scientist, job_id: UUID) -> None:
    async with ctx.database.write() as session:
        await service.cancel(ctx, session, who, job_id)


def _file_answers() -> dict[int | str, dict[str, Any]]:
    documented = answers(
        200,
        "(binary)",
        "The bytes.",
        "not-found",
        "file-not-ready",
        "file-gone",
        "client-withdrawn",
        "range-not-satisfiable",
        media=FORMATS[service.DEFAULT_FORMAT].media,
    )
    return {**documented, **NOT_200}


@router.get(
    "/{job_id}/file",
    operation_id="getSynthesisFile",
    summary="Download the rows",
    description="With ETag, If-None-Match, Range and If-Range: a broken download is continued.",
    response_class=Response,
    responses=_file_answers(),
)
async def file(
    ctx: Ctx,
    who: Scientist,
    request: Request,
    job_id: UUID,
    sent: Sent,
) -> Response:
    found = await service.file(ctx, who, request.app.state.models, job_id)
    headers = {
        "ETag": found.etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{found.name}"',
        "Link": f'</v1/receipts/{found.receipt_id}>; rel="describedby"',
        "X-FHV-Receipt": found.receipt_id,
    }
    if sent.know(found.etag):
        return Response(status_code=304, headers=headers)
    wanted = sent.wanted(found.etag, found.size)
    first, last = (0, found.size - 1) if wanted is None else wanted
    headers["Content-Length"] = str(last - first + 1)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {first}-{last}/{found.size}"
    return StreamingResponse(
        service.pieces(ctx, found, first, last),
        200 if wanted is None else 206,
        headers,
        FORMATS[found.format].media,
    )
