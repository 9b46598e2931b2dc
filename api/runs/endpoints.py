"""HTTP of runs."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response

from api import examples
from api.auth import Admin, Anyone
from api.context import Ctx
from api.idempotency import REPLAYED_HEADER, Key
from api.openapi import answers, example
from api.pages import DEFAULT_LIMIT, After, Limit, Page, paged
from api.runs import repository, service
from api.runs.service import NewRun, RunView

router = APIRouter(prefix="/v1/runs", tags=["runs"])


@router.post(
    "",
    operation_id="createRun",
    summary="Create a run from a plan",
    description="Calibrates the noise to the plan's epsilon (some seconds), checks every client's "
    "space, unit and budget, and fixes the result as the run's immutable specification.",
    status_code=201,
    responses=answers(
        201,
        examples.RUN,
        "Created, not yet started.",
        "run-name-taken",
        "budget-exceeded",
        "idempotency-key-reused",
        "invalid-plan",
        "space-mismatch",
    ),
)
async def create(
    ctx: Ctx,
    who: Admin,
    response: Response,
    body: Annotated[NewRun, example(examples.RUN_NEW)],
    key: Key = None,
) -> RunView:
    answer, replayed = await service.create(ctx, who, body, key)
    if replayed:
        response.headers[REPLAYED_HEADER] = "true"
    return answer


@router.get(
    "",
    operation_id="listRuns",
    summary="List runs",
    description="Oldest first. A client sees the runs in which it takes part.",
    responses=answers(200, examples.page(examples.RUN), "One page."),
)
async def listed(
    ctx: Ctx, who: Anyone, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Page[RunView]:
    async with ctx.database.read() as session:
        rows = await repository.page(session, limit, after, who.client_id)
        shown, more = paged(rows, limit)
        items = [await service.view(session, who, row) for row in shown]
    return Page(items=items, next=shown[-1].id if more else None)


@router.get(
    "/{run_id}",
    operation_id="getRun",
    summary="One run",
    description="State, specification and progress.",
    responses=answers(200, examples.RUN, "The run.", "not-found"),
)
async def one(ctx: Ctx, who: Anyone, run_id: UUID) -> RunView:
    async with ctx.database.read() as session:
        return await service.view(session, who, await service.visible(session, who, run_id))


@router.post(
    "/{run_id}/start",
    operation_id="startRun",
    summary="Start a run",
    description="Opens round 0, the sketch. Repeating it changes nothing.",
    responses=answers(
        200, examples.RUN, "Running (or completed already).", "not-found", "conflict"
    ),
)
async def start(ctx: Ctx, who: Admin, run_id: UUID) -> RunView:
    async with ctx.database.write() as session:
        run = await service.start(session, ctx.database, who, run_id)
        return await service.view(session, who, run)
