"""HTTP of fair use."""

from __future__ import annotations

from fastapi import APIRouter

from api import examples
from api.auth import Overseer, Scientist
from api.context import Ctx
from api.openapi import answers
from api.pages import DEFAULT_LIMIT, After, Limit, Page, paged
from api.usage import repository, service

router = APIRouter(prefix="/v1/usage", tags=["synthesis"])


@router.get(
    "",
    operation_id="getUsage",
    summary="What this token has used",
    description="Requests of this minute, rows of this day (UTC), and the limits.",
    responses=answers(200, examples.USAGE, "Usage and limits."),
)
async def own(ctx: Ctx, who: Scientist) -> service.UsageView:
    return await service.usage(ctx, who)


@router.get(
    "/tokens",
    operation_id="listUsage",
    summary="What every token has used",
    description="Tokens that ever asked for rows.",
    responses=answers(200, examples.page(examples.TOKEN_USAGE), "A page of them."),
)
async def every(
    ctx: Ctx, who: Overseer, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Page[service.TokenUsage]:
    found, more = paged(await repository.page(ctx.database, after, limit + 1), limit)
    items = [
        service.TokenUsage(
            token_id=one.token_id,
            label=one.label,
            scope=one.scope,
            requests_this_minute=one.requests,
            rows_today=one.rows,
        )
        for one in found
    ]
    return Page(items=items, next=items[-1].token_id if more else None)
