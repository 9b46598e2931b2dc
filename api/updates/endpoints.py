"""HTTP of updates: one PUT, streamed under the exact limit of its round."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Request, Response

from api import examples
from api.auth import ClientOrWorker, OverseerOrClient
from api.context import Ctx
from api.openapi import answers
from api.pages import DEFAULT_LIMIT, After, Limit, Page, paged
from api.problems import CATALOGUE, PayloadTooLarge, UnsupportedMediaType
from api.rounds.endpoints import Number
from api.runs import service as runs
from api.updates import rejections, service
from api.updates.rejections import RejectionView
from api.work.endpoints import Lease
from core.wire.messages import CONTENT_TYPE_TENSORS, UpdateReceipt
from core.wire.secure import CONTENT_TYPE_MASKED

router = APIRouter(prefix="/v1/runs", tags=["updates"])

# A sender that ignores the limit may finish so much more of its body before it is cut off: most
# HTTP clients only read the answer once they have sent theirs.
_DRAIN_BYTES = 8 * 2**20
_REJECTIONS = tuple(code for code in CATALOGUE if code.startswith("update-"))


async def read_limited(request: Request, limit: int) -> bytes:
    """The body, or ``PayloadTooLarge``; never more than ``limit`` bytes are kept."""
    kept: list[bytes] = []
    total = 0
    declared = request.headers.get("content-length", "")
    hopeless = declared.isdigit() and int(declared) > limit + _DRAIN_BYTES
    if not hopeless:
        async for chunk in request.stream():
            total += len(chunk)
            if total <= limit:
                kept.append(chunk)
            elif total > limit + _DRAIN_BYTES:
                break
    if hopeless or total > limit:
        raise PayloadTooLarge(f"an update of this round has at most {limit} bytes", limit=limit)
    return b"".join(kept)


@router.get(
    "/{run_id}/rejections",
    operation_id="listRejections",
    summary="Updates that were refused",
    description="What was wrong with each, oldest first; their bytes are not kept. An implausible "
    "one quarantines its client in this run until `releaseClient`. A client sees its own.",
    responses=answers(200, examples.page(examples.REJECTION), "One page.", "not-found"),
)
async def rejected(
    ctx: Ctx,
    who: OverseerOrClient,
    run_id: UUID,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
) -> Page[RejectionView]:
    async with ctx.database.read() as session:
        run = await runs.visible(session, who, run_id)
        rows = await rejections.page(session, run.id, limit, after, who.client_id)
    shown, more = paged(rows, limit)
    return Page(items=list(shown), next=shown[-1].id if more else None)


@router.put(
    "/{run_id}/rounds/{number}/updates/{update_id}",
    operation_id="putUpdate",
    summary="Send an update",
    description="The client chooses the id. The same bytes again get the same receipt (200), even "
    "after the round has closed; other bytes are refused. The update must be finite, of this "
    "round's layout and as noisy as the plan promises.",
    status_code=201,
    response_model=UpdateReceipt,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "One safetensors file with the tensor `update` (float32); in a round "
            "whose sum is secure the masked vector of the order's session.",
            "content": {
                media: {"schema": {"type": "string", "format": "binary"}, "example": "(binary)"}
                for media in (CONTENT_TYPE_TENSORS, CONTENT_TYPE_MASKED)
            },
        }
    },
    responses={
        **answers(
            201,
            examples.RECEIPT,
            "Accepted; it counts.",
            "not-found",
            "round-closed",
            "lease-lost",
            "payload-too-large",
            "store-unavailable",
            "unsupported-media-type",
            *_REJECTIONS,
        ),
        **answers(200, examples.RECEIPT, "Accepted before.", public=True),
    },
)
async def put(
    ctx: Ctx,
    who: ClientOrWorker,
    request: Request,
    response: Response,
    run_id: UUID,
    number: Number,
    update_id: UUID,
    lease: Lease = None,
) -> UpdateReceipt:
    media = request.headers.get("content-type", "").partition(";")[0].strip()
    if media not in (CONTENT_TYPE_TENSORS, CONTENT_TYPE_MASKED):
        raise UnsupportedMediaType(
            f"an update is sent as {CONTENT_TYPE_TENSORS}, a masked vector as "
            f"{CONTENT_TYPE_MASKED}",
            field="Content-Type",
        )
    to = await service.target(ctx, who, run_id, number, update_id, lease)
    wanted = CONTENT_TYPE_TENSORS if to.masked is None else CONTENT_TYPE_MASKED
    if media != wanted:
        raise UnsupportedMediaType(
            f"what is sent in this round is {wanted}",
            field="Content-Type",
            mend="Compare the site's software with the order: it says whether the sum is secure.",
        )
    body = await read_limited(request, to.max_bytes)
    receipt, new = await service.receive(ctx, to, body)
    response.status_code = 201 if new else 200
    return receipt
