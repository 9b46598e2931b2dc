"""HTTP of joins."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api import examples
from api.auth import AdminOrClient, Anyone
from api.context import Ctx
from api.idempotency import REPLAYED_HEADER, Key
from api.joins import repository, service
from api.joins.service import JoinView, NewJoin
from api.openapi import answers, example
from api.pages import DEFAULT_LIMIT, Limit, paged
from api.rounds.endpoints import AfterRound
from api.runs import service as runs

router = APIRouter(prefix="/v1/runs", tags=["joins"])


class JoinPage(BaseModel):
    items: list[JoinView]
    next: int | None


@router.post(
    "/{run_id}/joins",
    operation_id="createJoin",
    summary="Let clients join a run",
    description="Opens one more round of a completed run, whose only members are these clients; "
    "asked for while the run is under way, the join is queued and its round follows. Each "
    "posts one sketch (the price of all the run's sketch steps together) and has a code and a "
    "decoder of its own once the round is published; nothing changes for the clients before, and "
    "nothing is trained. A client's own token may ask for itself where the plan's `joining` is "
    "'open'.",
    status_code=201,
    responses=answers(
        201,
        examples.JOIN,
        "The join, soon open (or queued behind the run).",
        "not-found",
        "conflict",
        "budget-exceeded",
        "idempotency-key-reused",
        "invalid-plan",
        "space-mismatch",
    ),
)
async def create(
    ctx: Ctx,
    who: AdminOrClient,
    response: Response,
    run_id: UUID,
    body: Annotated[NewJoin, example(examples.JOIN_NEW)],
    key: Key = None,
) -> JoinView:
    answer, replayed = await service.create(ctx, who, run_id, body, key)
    if replayed:
        response.headers[REPLAYED_HEADER] = "true"
    return answer


@router.get(
    "/{run_id}/joins",
    operation_id="listJoins",
    summary="List the joins of a run",
    description="In order of their rounds' numbers, which are also the cursor, with their state "
    "and why they wait or failed; queued and dropped ones last. A client sees its own.",
    responses=answers(200, examples.page(examples.JOIN), "One page.", "not-found"),
)
async def listed(
    ctx: Ctx,
    who: Anyone,
    run_id: UUID,
    limit: Limit = DEFAULT_LIMIT,
    after: AfterRound = None,
) -> JoinPage:
    async with ctx.database.read() as session:
        run = await runs.visible(session, who, run_id)
        rows = await repository.page(session, run.id, limit, after, who.client_id)
        shown, more = paged(rows, limit)
        items = [await service.view(ctx, session, who, run, row) for row in shown]
        if not more:  # who waits comes last, without a number yet
            waiting = await repository.requests(session, run.id, who.client_id)
            items += [service.queued(run, [one]) for one in waiting]
    return JoinPage(items=items, next=shown[-1].number if more else None)
