"""HTTP of rounds and of the models that they publish."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from api import examples
from api.auth import Anyone
from api.context import Ctx
from api.openapi import answers
from api.pages import DEFAULT_LIMIT, Limit, paged
from api.rounds import repository, service
from api.rounds.service import ModelView, RoundView
from api.runs import service as runs
from core.federation.values import MAX_ROUND_NUMBER

router = APIRouter(prefix="/v1/runs", tags=["rounds"])
Number = Annotated[int, Path(ge=0, le=MAX_ROUND_NUMBER)]
AfterRound = Annotated[
    int | None, Query(ge=0, le=MAX_ROUND_NUMBER, description="`next` of the page before.")
]
WhichRound = Annotated[
    Literal["latest"] | Annotated[int, Query(ge=0, le=MAX_ROUND_NUMBER)], Query(alias="round")
]


class RoundPage(BaseModel):
    items: list[RoundView]
    next: int | None


@router.get(
    "/{run_id}/rounds",
    operation_id="listRounds",
    summary="List the rounds of a run",
    description="In order of their number, which is also the cursor.",
    responses=answers(200, examples.page(examples.ROUND), "One page.", "not-found"),
)
async def listed(
    ctx: Ctx,
    who: Anyone,
    run_id: UUID,
    limit: Limit = DEFAULT_LIMIT,
    after: AfterRound = None,
) -> RoundPage:
    async with ctx.database.read() as session:
        run = await runs.visible(session, who, run_id)
        shown, more = paged(await repository.page(session, run.id, limit, after), limit)
        items = [await service.view(ctx, session, who, run, row) for row in shown]
    return RoundPage(items=items, next=items[-1].number if more else None)


@router.get(
    "/{run_id}/rounds/{number}",
    operation_id="getRound",
    summary="One round",
    description="Its state, who is missing and why it waits.",
    responses=answers(200, examples.ROUND, "The round.", "not-found"),
)
async def one(ctx: Ctx, who: Anyone, run_id: UUID, number: Number) -> RoundView:
    async with ctx.database.read() as session:
        run = await runs.visible(session, who, run_id)
        return await service.view(ctx, session, who, run, await service.one(session, run, number))


@router.get(
    "/{run_id}/model",
    operation_id="getModel",
    summary="The published model of a run",
    description="Digests to download from /v1/objects, and what the model cost each client.",
    responses=answers(200, examples.MODEL, "The model.", "not-found"),
)
async def model(
    ctx: Ctx,
    who: Anyone,
    run_id: UUID,
    number: WhichRound = "latest",
) -> ModelView:
    async with ctx.database.read() as session:
        run = await runs.visible(session, who, run_id)
        return await service.model(session, who, run, None if number == "latest" else number)
