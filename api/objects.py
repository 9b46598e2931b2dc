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
from api.db.run_models import Round, RunClient
from api.downloads import NOT_200, Sent, answered
from api.examples import FRAME
from api.openapi import answers
from api.problems import NotFound
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
    return await answered(
        digest,
        sent,
        {"Cache-Control": "private, max-age=31536000, immutable"},
        lambda: asyncio.to_thread(ctx.store.get, digest),
    )
