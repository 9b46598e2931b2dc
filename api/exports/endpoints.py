"""HTTP of exports."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from api import examples
from api.auth import Scientist
from api.context import Ctx
from api.downloads import NOT_200, Sent, answered
from api.exports import service
from api.openapi import answers
from api.rounds.endpoints import WhichRound
from core.wire.messages import CONTENT_TYPE_TENSORS

router = APIRouter(prefix="/v1/runs", tags=["synthesis"])


@router.get(
    "/{run}/export",
    operation_id="exportModel",
    summary="Take a published generator away",
    description="One safetensors file with all that samplers need, a model card, the licence and a "
    "signed receipt; `fedhypevae sample --offline FILE` makes the same rows from it as "
    "/synthesize, without a network. The same model gives the same bytes, until another key signs. "
    "With ETag, If-None-Match, Range and If-Range.",
    response_class=Response,
    responses={
        **answers(
            200,
            "(binary)",
            "The file.",
            "not-found",
            "not-private",
            "range-not-satisfiable",
            media=CONTENT_TYPE_TENSORS,
        ),
        **NOT_200,
    },
)
async def export(
    ctx: Ctx,
    who: Scientist,
    request: Request,
    sent: Sent,
    run: Annotated[
        str,
        Path(
            min_length=1,
            max_length=64,
            description="Run id or name.",
            openapi_examples={"run": {"value": examples.SYNTHESIS["run"]}},
        ),
    ],
    number: WhichRound = "latest",
) -> Response:
    state = request.app.state
    asked = None if number == "latest" else number
    made = await service.export(ctx, who, state.models, state.generators, state.keyring, run, asked)

    async def read() -> bytes:
        await service.recorded(ctx, who, made)
        return made.body

    headers = {
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{made.name}"',
    }
    return await answered(made.digest, sent, headers, read)
