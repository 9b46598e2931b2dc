"""HTTP of identity keys: a site's own, and those of the others in a run."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter

from api.auth import Admin, AdminOrClientOrWorker, Involved
from api.context import Ctx
from api.openapi import answers, example
from api.secure_sums import examples, identities
from core.wire.secure import IdentityKey, Peer

router = APIRouter(prefix="/v1", tags=["secure sums"])


@router.put(
    "/clients/{client_id}/identity-key",
    operation_id="setIdentityKey",
    summary="Register a client's identity key",
    description="The Ed25519 key with which the client's site signs in secure sums. Set once: the "
    "same again changes nothing, another one is refused. Of a managed client, an administrator may "
    "set it, too, as its people read it out.",
    responses=answers(
        200, {**examples.PEER, "client": "site-a"}, "Known.", "not-found", "identity-key-set"
    ),
)
async def put(
    ctx: Ctx,
    who: AdminOrClientOrWorker,
    client_id: UUID,
    body: Annotated[IdentityKey, example(examples.IDENTITY)],
) -> Peer:
    async with ctx.database.write() as session:
        return await identities.register(session, who, client_id, body.key)


@router.delete(
    "/clients/{client_id}/identity-key",
    operation_id="removeIdentityKey",
    summary="Remove a client's identity key",
    description="So that its site can register a new one. Refused while a run with secure sums is "
    "under way in which the client signs. Repeating it changes nothing.",
    status_code=204,
    responses=answers(204, None, "Removed.", "not-found", "conflict"),
)
async def delete(ctx: Ctx, who: Admin, client_id: UUID) -> None:
    async with ctx.database.write() as session:
        await identities.remove(session, who, client_id)


@router.get(
    "/runs/{run_id}/peers",
    operation_id="listPeers",
    summary="Who sums in a run, and by which keys they are known here",
    description="Founding clients of a run with secure sums. Whether a key is really a site's, its "
    "people tell: compare fingerprints by a way that does not lead over this coordinator.",
    responses=answers(200, [examples.PEER], "In the order of the run's sums.", "not-found"),
)
async def peers(ctx: Ctx, who: Involved, run_id: UUID) -> list[Peer]:
    async with ctx.database.read() as session:
        return await identities.peers(session, who, run_id)
