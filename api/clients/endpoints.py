"""HTTP of clients."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from api import examples
from api.auth import Admin, ClientOnly, Overseer, OverseerOrClient
from api.clients import repository, revocation, service
from api.clients.service import ClientView, Enrolled, NewClient
from api.context import Ctx
from api.idempotency import REPLAYED_HEADER, Key
from api.openapi import answers, example
from api.pages import DEFAULT_LIMIT, After, Limit, Page, paged
from api.problems import NotFound
from core.federation.values import Line

router = APIRouter(prefix="/v1/clients", tags=["clients"])


@router.post(
    "",
    operation_id="createClient",
    summary="Enrol a client",
    description="Answers with the client's token, once. A managed client has none. With an "
    "Idempotency-Key a repeated request gets the same client, without the token.",
    status_code=201,
    responses=answers(
        201, examples.ENROLLED, "Enrolled.", "client-name-taken", "idempotency-key-reused"
    ),
)
async def create(
    ctx: Ctx,
    who: Admin,
    response: Response,
    body: Annotated[NewClient, example(examples.CLIENT_NEW)],
    key: Key = None,
) -> Enrolled:
    async with ctx.database.write() as session:
        answer, replayed = await service.enrol(session, who, ctx.settings.pepper, body, key)
    if replayed:
        response.headers[REPLAYED_HEADER] = "true"
    return answer


@router.get(
    "",
    operation_id="listClients",
    summary="List clients",
    description="Oldest first.",
    responses=answers(200, examples.page(examples.CLIENT), "One page."),
)
async def listed(
    ctx: Ctx, who: Overseer, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Page[ClientView]:
    async with ctx.database.read() as session:
        rows = await repository.page(session, limit, after)
    shown, more = paged(rows, limit)
    return Page(items=[service.view(row) for row in shown], next=shown[-1].id if more else None)


@router.get(
    "/me",
    operation_id="getOwnClient",
    summary="The client of this token",
    description="What the coordinator knows about the caller.",
    responses=answers(200, examples.CLIENT, "The client.", "not-found"),
)
async def me(ctx: Ctx, who: ClientOnly) -> ClientView:
    if who.client_id is None:
        raise NotFound("this token belongs to no client")
    async with ctx.database.read() as session:
        return service.view(await service.one(session, who, who.client_id))


class Revocation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    why: Line = Field(min_length=1, max_length=200, description="Shown to overseers.")


@router.post(
    "/{client_id}/revoke",
    operation_id="revokeClient",
    summary="Revoke a client",
    description="For good: its tokens are refused from the next request on, its orders are "
    "withdrawn, it gets no work of any run. What was accepted of it stays in the models, what was "
    "reserved for it stays spent. Repeating it changes nothing.",
    responses=answers(200, {**examples.CLIENT, "revoked_at": examples.AT}, "Revoked.", "not-found"),
)
async def revoked(
    ctx: Ctx, who: Admin, client_id: UUID, body: Annotated[Revocation, example(examples.DEPARTURE)]
) -> ClientView:
    async with ctx.database.write() as session:
        return service.view(await revocation.revoke(ctx, session, who, client_id, body.why))


@router.get(
    "/{client_id}",
    operation_id="getClient",
    summary="One client",
    description="A client token sees its own client only.",
    responses=answers(200, examples.CLIENT, "The client.", "not-found"),
)
async def one(ctx: Ctx, who: OverseerOrClient, client_id: UUID) -> ClientView:
    async with ctx.database.read() as session:
        return service.view(await service.one(session, who, client_id))
