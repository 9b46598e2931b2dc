"""HTTP of synthesis, under /v1/synthesize and /synthesize."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from api import examples
from api.auth import Scientist
from api.context import Ctx
from api.openapi import answers, example
from api.synthesis import service
from api.synthesis.negotiation import chosen
from core.synthesis.formats import FORMATS, whole
from core.synthesis.request import SynthesisRequest
from core.synthesis.streams import BLOCK_ROWS

router = APIRouter(tags=["synthesis"])
SEED_HEADER, MODEL_HEADER = "X-FHV-Seed", "X-FHV-Model"

_DESCRIPTION = (
    "Labelled rows under the neutral code, or under clients' codes: a blend of them, or each row "
    "under one (`mode`). `format`, or `Accept`: JSON, Parquet, an Arrow IPC stream or numpy's npz; "
    "all but short answers are streamed while rows are made. The receipt is in the body (JSON, "
    "npz) or in the schema's metadata (Parquet, Arrow). The same request with the same seed gives "
    "the same rows in every format; without a seed one is drawn, and told."
)


def _documented() -> dict[int | str, dict[str, Any]]:
    documented = answers(
        200,
        examples.SYNTHESISED,
        "Rows and receipt.",
        "not-found",
        "invalid-mixture",
        "unknown-mixture-client",
        "invalid-synthesis-request",
        "not-acceptable",
    )
    for kind, each in FORMATS.items():
        if kind != "json":
            content = {"schema": {"type": "string", "format": "binary"}}
            documented[200]["content"][each.media] = content
    documented[200]["headers"] = {
        SEED_HEADER: {"description": "The seed used.", "schema": {"type": "string"}},
        MODEL_HEADER: {"description": "Digest of the weights.", "schema": {"type": "string"}},
    }
    return documented


async def _synthesise(
    ctx: Ctx,
    who: Scientist,
    request: Request,
    body: Annotated[SynthesisRequest, example(examples.SYNTHESIS)],
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    kind = chosen(body.format, accept)
    made = await service.synthesise(ctx, who, request.app.state.generators, body, kind)
    headers = {SEED_HEADER: str(made.seed), MODEL_HEADER: made.model.weights.digest}
    media = FORMATS[kind].media
    if body.size <= BLOCK_ROWS:
        async with ctx.heavy:
            content = await asyncio.to_thread(whole, kind, made.document)
        return Response(content, 200, headers, media)
    return StreamingResponse(service.written(ctx, made.document, kind), 200, headers, media)


for path, operation in (("/v1/synthesize", "synthesize"), ("/synthesize", "synthesizeUnversioned")):
    router.add_api_route(
        path,
        _synthesise,
        methods=["POST"],
        operation_id=operation,
        summary="Synthesise labelled embeddings",
        description=_DESCRIPTION,
        response_class=JSONResponse,
        responses=_documented(),
    )
