"""Downloads of published models: content-addressed, hence cacheable for ever.

Only digests that a published round names as its frame or weights are served. Updates and
optimiser states are not, whoever asks.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from api import etags
from api.auth import Anyone, Principal
from api.context import Ctx
from api.db.models import Client
from api.db.run_models import Round, RunClient, Update
from api.examples import FRAME
from api.openapi import answers
from api.problems import ClientWithdrawn, NotFound, RangeNotSatisfiable
from core.wire.messages import CONTENT_TYPE_TENSORS

router = APIRouter(prefix="/v1/objects", tags=["objects"])
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")


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


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first, last) of a single range, or None for the whole (also for what RFC 9110 lets a
    server ignore: other units, several ranges). Raises ``RangeNotSatisfiable``.
    """
    match = _RANGE.match(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise RangeNotSatisfiable(f"the object has {size} bytes", field="Range")
        return size - length, size - 1
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable(f"the object has {size} bytes", field="Range")
    return start, end


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
        206: {"description": "The range that was asked for."},
        304: {"description": "The caller has these bytes already."},
    },
)
async def download(
    ctx: Ctx,
    who: Anyone,
    digest: Annotated[
        str,
        Path(pattern=r"^sha256:[0-9a-f]{64}$", openapi_examples={"frame": {"value": FRAME}}),
    ],
    range_header: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range")] = None,
    if_none_match: Annotated[str | None, Header(alias="If-None-Match")] = None,
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
    etag = f'"{digest}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    if etags.has(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    body = await asyncio.to_thread(ctx.store.get, digest)
    wanted = None
    if if_range is None or if_range.strip() == etag:
        wanted = parse_range(range_header, len(body))
    if wanted is None:
        return Response(body, 200, headers, CONTENT_TYPE_TENSORS)
    start, end = wanted
    headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
    return Response(body[start : end + 1], 206, headers, CONTENT_TYPE_TENSORS)
