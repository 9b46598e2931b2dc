"""HTTP of the ledger."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter

from api import examples
from api.auth import OverseerOrClient
from api.clients import service as clients
from api.context import Ctx
from api.ledger import service
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
