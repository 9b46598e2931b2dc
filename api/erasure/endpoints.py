"""HTTP of erasure."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter

from api import examples
from api.auth import AdminOrClient
from api.context import Ctx
from api.erasure import service
from api.erasure.service import ErasedView
from api.openapi import answers

router = APIRouter(prefix="/v1/clients", tags=["updates"])


@router.delete(
    "/{client_id}/updates",
    operation_id="eraseUpdates",
    summary="Erase a client's stored updates",
    description="Deletes the bytes of its updates in rounds that have ended; those rounds cannot "
    "be replayed any more. What a round under way needs is kept and listed. Published models and "
    "the ledger stay as they are: what was released is spent. Repeating it changes nothing.",
    responses=answers(200, examples.ERASED, "What was erased, what was kept.", "not-found"),
)
async def erase(ctx: Ctx, who: AdminOrClient, client_id: UUID) -> ErasedView:
    return await service.erase_of_client(ctx, who, client_id)
