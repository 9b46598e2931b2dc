"""HTTP of what people do to a run under way."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api import examples
from api.auth import Admin, AdminOrClient
from api.context import Ctx
from api.openapi import answers, example
from api.runs import control, service
from api.runs.service import RunView
from core.federation.values import Line

router = APIRouter(prefix="/v1/runs", tags=["runs"])
_WEEK_S, _MONTH_S = 7 * 86_400.0, 30 * 86_400.0


class Pause(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    seconds: float = Field(
        default=_WEEK_S,
        gt=0,
        le=_MONTH_S,
        description="The run is cancelled if it is not resumed by then.",
    )


class Departure(BaseModel):
    model_config = ConfigDict(extra="forbid")

    why: Line = Field(min_length=1, max_length=200, description="Shown to overseers.")


@router.post(
    "/{run_id}/pause",
    operation_id="pauseRun",
    summary="Pause a run",
    description="No order is handed out and no deadline passes until it is resumed. Orders in "
    "hand may be finished: they are spent already. A pause that nobody ends cancels the run. "
    "Pausing again moves its end.",
    responses=answers(200, examples.RUN_PAUSED, "Paused.", "not-found", "conflict"),
)
async def pause(
    ctx: Ctx,
    who: Admin,
    run_id: UUID,
    body: Annotated[Pause, example(examples.PAUSE)],
) -> RunView:
    async with ctx.database.write() as session:
        run = await control.pause(ctx, session, who, run_id, body.seconds)
        return await service.view(session, who, run)


@router.post(
    "/{run_id}/resume",
    operation_id="resumeRun",
    summary="Resume a paused run",
    description="The open round gets its time back. Repeating it changes nothing.",
    responses=answers(200, examples.RUN, "Running.", "not-found", "conflict"),
)
async def resume(ctx: Ctx, who: Admin, run_id: UUID) -> RunView:
    async with ctx.database.write() as session:
        run = await control.resume(ctx, session, who, run_id)
        return await service.view(session, who, run)


@router.post(
    "/{run_id}/cancel",
    operation_id="cancelRun",
    summary="Stop a run for good",
    description="The open round is abandoned, orders are withdrawn, what was reserved stays "
    "spent. Published rounds stay. Repeating it changes nothing. A completed run stays completed: "
    "there, a join that is under way is abandoned.",
    responses=answers(200, examples.RUN_CANCELLED, "Stopped (or ended already).", "not-found"),
)
async def cancel(ctx: Ctx, who: Admin, run_id: UUID) -> RunView:
    async with ctx.database.write() as session:
        run = await control.cancel(ctx, session, who, run_id)
        return await service.view(session, who, run)


@router.post(
    "/{run_id}/clients/{client_id}/leave",
    operation_id="leaveRun",
    summary="Take a client out of a run",
    description="By the client itself or by an administrator; for good. Its open order is "
    "withdrawn (and stays spent); what was accepted of it stays in the models. The others go on, "
    "if the quorum can still be reached. Repeating it changes nothing.",
    responses=answers(200, examples.RUN, "The client has left.", "not-found"),
)
async def leave(
    ctx: Ctx,
    who: AdminOrClient,
    run_id: UUID,
    client_id: UUID,
    body: Annotated[Departure, example(examples.DEPARTURE)],
) -> RunView:
    who.must_be_client(client_id)
    async with ctx.database.write() as session:
        await control.leave(ctx, session, who, run_id, client_id, body.why)
        return await service.view(session, who, await service.visible(session, who, run_id))


@router.post(
    "/{run_id}/clients/{client_id}/release",
    operation_id="releaseClient",
    summary="End a client's quarantine",
    description="After its software was mended. Repeating it changes nothing.",
    responses=answers(200, examples.RUN, "The client may have work again.", "not-found"),
)
async def release(ctx: Ctx, who: Admin, run_id: UUID, client_id: UUID) -> RunView:
    async with ctx.database.write() as session:
        await control.release(ctx, session, who, run_id, client_id)
        return await service.view(session, who, await service.visible(session, who, run_id))
