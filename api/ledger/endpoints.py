"""HTTP of the ledger."""

from __future__ import annotations

import asyncio
from uuid import UUID

from fastapi import APIRouter, Response

from api import examples
from api.auth import OverseerOrClient
from api.clients import service as clients
from api.context import Ctx
from api.ledger import service, statement, table
from api.ledger.service import LedgerView
from api.ledger.statement import StatementView
from api.openapi import answers

router = APIRouter(prefix="/v1/clients", tags=["ledger"])


@router.get(
    "/{client_id}/ledger",
    operation_id="getLedger",
    summary="The privacy ledger of a client's account",
    description="Every reservation and its outcome, of all clients over the same population. "
    "Epsilon is recomputed from the events; a lost reservation counts as spent.",
    responses=answers(200, examples.LEDGER, "The ledger.", "not-found"),
)
async def ledger(ctx: Ctx, who: OverseerOrClient, client_id: UUID) -> LedgerView:
    async with ctx.database.read() as session:
        return await service.statement(session, await clients.one(session, who, client_id))


@router.get(
    "/{client_id}/ledger.csv",
    operation_id="getLedgerTable",
    summary="The same ledger as CSV, for an auditor's own tools",
    description="One line an entry, with the event of its reservation: feed the events of the "
    "lines of kind `reserve` to any accountant to recompute epsilon.",
    response_class=Response,
    responses=answers(
        200, examples.LEDGER_TABLE, "The entries as CSV.", "not-found", media=table.MEDIA
    ),
)
async def ledger_table(ctx: Ctx, who: OverseerOrClient, client_id: UUID) -> Response:
    async with ctx.database.read() as session:
        client = await clients.one(session, who, client_id)
        account, entries = service.account_of(client), await service.entries(session, client)
    name = f"ledger-{client_id}.csv"
    return Response(
        table.to_csv(account, entries),
        media_type=table.MEDIA,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


@router.get(
    "/{client_id}/statement",
    operation_id="getStatement",
    summary="What a client's account has spent, run by run, for an auditor",
    description="Counts, epsilon and lost reservations of every run, at the client's delta, with "
    "the accountant's name and version. Each run lists its events: feed them to that accountant "
    "to recompute. Epsilon of parts does not add up; `epsilon.total` is of all of them together.",
    responses=answers(200, examples.STATEMENT, "The statement.", "not-found"),
)
async def ledger_statement(ctx: Ctx, who: OverseerOrClient, client_id: UUID) -> StatementView:
    async with ctx.database.read() as session:
        client = await clients.one(session, who, client_id)
        facts = await statement.gather(session, client, await ctx.database.now(session))
    async with ctx.heavy:
        return await asyncio.to_thread(statement.statement, facts)
