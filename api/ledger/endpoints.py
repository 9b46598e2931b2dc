"""HTTP of the ledger."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Response

from api import examples
from api.auth import OverseerOrClient
from api.clients import service as clients
from api.context import Ctx
from api.ledger import service, table
from api.ledger.service import LedgerView
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
