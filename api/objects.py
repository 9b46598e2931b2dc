"""Downloads of published models: content-addressed, hence cacheable for ever.

Only digests that a published round names as its frame or weights are served. Updates and
optimiser states are not, whoever asks.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Anyone, Principal
from api.context import Ctx
from api.db.models import Client
from api.db.run_models import Round, RunClient, Update
from api.downloads import NOT_200, Sent, answered
from api.examples import FRAME
from api.openapi import answers
from api.problems import NotFound
from core.errors import ClientWithdrawn
from core.wire.messages import CONTENT_TYPE_TENSORS

router = APIRouter(prefix="/v1/objects", tags=["objects"])


async def _served(session: AsyncSession, who: Principal, digest: str) -> bool:
    query = select(Round.number).where(
        Round.state == "published",
        or_(Round.frame_digest == digest, Round.weights_digest == digest),
    )
    if who.client_id is not None:
        query = query.join(RunClient, RunClient.run_id == Round.run_id).where(
            RunClient.client_id == who.client_id
        )
    return (await session.execute(query.limit(1))).first() is not None


async def _withdrawn(session: AsyncSession, digest: str) -> list[str]:
    """Revoked clients that released something into a run to which the object belongs."""
    query = (
        select(Client.name)
        .distinct()
        .join(Update, Update.client_id == Client.id)
        .join(Round, Round.run_id == Update.run_id)
        .where(
            Client.revoked_at.is_not(None),
            or_(Round.frame_digest == digest, Round.weights_digest == digest),
        )
        .order_by(Client.name)
    )
    return list(await session.scalars(query))


@router.get(
    "/{digest}",
    operation_id="getObject",
    summary="Download a frame or weights",
    description="With ETag, If-None-Match, Range and If-Range: a broken download is continued.",
    response_class=Response,
    responses={
        **answers(
            200,
            "(binary)",
            "The bytes.",
            "not-found",
            "client-withdrawn",
            "range-not-satisfiable",
            media=CONTENT_TYPE_TENSORS,
        ),
        **NOT_200,
    },
)
async def download(
    ctx: Ctx,
    who: Anyone,
    digest: Annotated[
        str,
        Path(pattern=r"^sha256:[0-9a-f]{64}$", openapi_examples={"frame": {"value": FRAME}}),
    ],
    sent: Sent,
) -> Response:
    async with ctx.database.read() as session:
        if not await _served(session, who, digest):
            raise NotFound("there is no such published object, or you take no part in its run")
        if who.scope == "scientist" and (gone := await _withdrawn(session, digest)):
            raise ClientWithdrawn(
                f"the file holds what belongs to {', '.join(gone)}, who has withdrawn",
                field="digest",
                mend="Export the model: GET /v1/runs/{run}/export leaves it out.",
            )
    return await answered(
        digest,
        sent,
        {"Cache-Control": "private, max-age=31536000, immutable"},
        lambda: asyncio.to_thread(ctx.store.get, digest),
    )
