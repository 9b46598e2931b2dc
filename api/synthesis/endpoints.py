"""HTTP of synthesis, under /v1/synthesize and /synthesize."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from api import etags, examples
from api.auth import Principal, Scientist
from api.context import Context, Ctx
from api.openapi import answers, example
from api.problems import JobNeeded
from api.synthesis import service
from api.synthesis.encoding import coding_of, compress, compressed
from api.synthesis.negotiation import chosen
from api.synthesis.query import Asked
from api.usage import service as usage
from core.synthesis.formats import FORMATS
from core.synthesis.request import SynthesisRequest
from core.synthesis.streams import BLOCK_ROWS

router = APIRouter(tags=["synthesis"])
SEED_HEADER, MODEL_HEADER, RECEIPT_HEADER = "X-FHV-Seed", "X-FHV-Model", "X-FHV-Receipt"
LABEL_HEADER = "X-FHV-Label"

_DESCRIPTION = (
    "Labelled rows under the neutral code, or under clients' codes: a blend of them, or each row "
    "under one (`mode`). `format`, or `Accept`: JSON, NDJSON, CSV, Parquet, an Arrow IPC stream, "
    "numpy's npz or npy; all but short answers are streamed while rows are made. The signed "
    "receipt has the address in `Link`; JSON, npz and Parquet hold it too. The same request with "
    "the same seed gives the same rows in every format; without a seed one is drawn, and told."
)
_PROBLEMS = (
    "not-found",
    "not-private",
    "client-withdrawn",
    "invalid-mixture",
    "unknown-mixture-client",
    "invalid-synthesis-request",
    "job-needed",
    "not-acceptable",
    "quota-exceeded",
    "too-many-answers",
)


def _documented() -> dict[int | str, dict[str, Any]]:
    documented = answers(200, examples.SYNTHESISED, "Rows and receipt.", *_PROBLEMS)
    for kind, each in FORMATS.items():
        if kind != "json":
            content = {"schema": {"type": "string", "format": "binary"}}
            documented[200]["content"][each.media] = content
    text = {"type": "string"}
    documented[200]["headers"] = {
        SEED_HEADER: {"description": "The seed used.", "schema": text},
        MODEL_HEADER: {"description": "Digest of the weights.", "schema": text},
        RECEIPT_HEADER: {"description": "Id of the receipt.", "schema": text},
        LABEL_HEADER: {"description": "NOT PRIVATE, where the model is not.", "schema": text},
    }
    return documented


def _headers(draft: service.Draft, coding: str | None) -> dict[str, str]:
    receipt = draft.receipt
    headers = {
        SEED_HEADER: str(draft.seed),
        MODEL_HEADER: draft.of.model.weights.digest,
        RECEIPT_HEADER: receipt.id,
        "Link": f'</v1/receipts/{receipt.id}>; rel="describedby"',
        "Vary": "Accept, Accept-Encoding, Authorization",
        "Cache-Control": "private, no-cache",
    }
    if receipt.label:
        headers[LABEL_HEADER] = receipt.label
    if coding is None:
        headers["ETag"] = draft.etag
    else:
        headers["Content-Encoding"] = coding
        headers["ETag"] = "W/" + draft.etag
    return headers


async def _answer(
    ctx: Context,
    who: Principal,
    request: Request,
    body: SynthesisRequest,
) -> Response:
    field = "n" if body.n is not None else "class_counts"
    usage.must_be_allowed(ctx.settings, body.size, field)
    if body.size > ctx.settings.synthesis_job_rows:
        raise JobNeeded(
            f"{body.size:,} rows are more than the {ctx.settings.synthesis_job_rows:,} that are "
            "made while one waits",
            field=field,
            mend="POST the same body to /v1/synthesis-jobs.",
        )
    kind = chosen(body.format, request.headers.get("accept"))
    coding = coding_of(request.headers.get("accept-encoding"), kind)
    state = request.app.state
    draft = await service.drafted(
        ctx, who, state.models, state.generators, state.keyring, body, kind
    )
    headers, media = _headers(draft, coding), FORMATS[kind].media
    known = etags.has(request.headers.get("if-none-match"), draft.etag)
    if request.method == "GET" and known:
        return Response(status_code=304, headers=headers)
    with ExitStack() as place:
        place.enter_context(state.answers.place(who.token_id))
        headers |= await usage.charge(ctx, who, body.size)
        if body.size > BLOCK_ROWS:
            pieces = await service.streamed(ctx, who, draft)
            if coding is not None:
                pieces = compress(pieces, coding)
            return _Held(place.pop_all(), pieces, 200, headers, media)
        content = await service.at_once(ctx, who, draft)
        if coding is not None:
            content = await asyncio.to_thread(compressed, content, coding)
        return Response(content, 200, headers, media)


class _Held(StreamingResponse):
    """Gives its place back when it has ended, however."""

    def __init__(self, place: ExitStack, *args: Any) -> None:
        super().__init__(*args)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def _synthesise(
    ctx: Ctx,
    who: Scientist,
    request: Request,
    body: Annotated[SynthesisRequest, example(examples.SYNTHESIS)],
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    return await _answer(ctx, who, request, body)


async def _synthesise_by_url(
    ctx: Ctx,
    who: Scientist,
    request: Request,
    asked: Asked,
    accept: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    return await _answer(ctx, who, request, asked.request())


for path, suffix in (("/v1/synthesize", ""), ("/synthesize", "Unversioned")):
    router.add_api_route(
        path,
        _synthesise,
        methods=["POST"],
        operation_id=f"synthesize{suffix}",
        summary="Synthesise labelled embeddings",
        description=_DESCRIPTION,
        response_class=JSONResponse,
        responses=_documented(),
    )
    router.add_api_route(
        path,
        _synthesise_by_url,
        methods=["GET"],
        operation_id=f"synthesizeByUrl{suffix}",
        summary="Synthesise, by a URL",
        description="The same for tools that read from a URL, such as `pandas.read_parquet`. With "
        "a seed, an answer that the caller has already (`If-None-Match`) is not made again.",
        response_class=JSONResponse,
        responses={**_documented(), 304: {"description": "The caller has these rows already."}},
    )
