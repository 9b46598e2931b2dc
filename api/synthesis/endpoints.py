"""HTTP of synthesis, under /v1/synthesize and /synthesize."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse

from api import examples
from api.auth import Scientist
from api.context import Ctx
from api.openapi import answers, example
from api.synthesis import service
from core.synthesis import formats
from core.synthesis.request import SynthesisRequest

router = APIRouter(tags=["synthesis"])
PARQUET = "application/vnd.apache.parquet"
SEED_HEADER, MODEL_HEADER = "X-FHV-Seed", "X-FHV-Model"

_DESCRIPTION = (
    "Labelled rows under the neutral code, one client's code or a blend of codes. JSON, or "
    "Parquet with `format: parquet` or `Accept: application/vnd.apache.parquet`. The receipt is "
    "in the body (JSON) or in the schema's metadata (Parquet). Without a seed one is drawn."
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
    )
    documented[200]["content"][PARQUET] = {"schema": {"type": "string", "format": "binary"}}
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
    parquet = body.format == "parquet" or PARQUET in (accept or "")
    made = await service.synthesise(
        ctx, who, request.app.state.generators, body, as_json=not parquet
    )
    headers = {SEED_HEADER: str(made.samples.seed), MODEL_HEADER: made.model.weights.digest}
    if parquet:
        content = await asyncio.to_thread(formats.to_parquet, made.samples, made.receipt)
        return Response(content, 200, headers, PARQUET)
    document = await asyncio.to_thread(formats.to_json, made.samples, made.receipt)
    return await asyncio.to_thread(JSONResponse, document, 200, headers)


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
