"""HTTP of reports."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response

from api import etags
from api.auth import Reader
from api.context import Ctx
from api.negotiation import preferred
from api.openapi import answers
from api.report.example import REPORT
from api.report.service import MEDIA, Kind
from api.rounds.endpoints import WhichRound
from core.report.report import Report

router = APIRouter(prefix="/v1/runs", tags=["rounds"])

# The page needs nothing but itself: no script, no font, no picture of another host.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept, Authorization",
    "Cache-Control": "private, no-cache",
}


def _documented() -> dict[int | str, dict[str, Any]]:
    documented = answers(200, REPORT, "The report.", "not-found", "not-private", "not-acceptable")
    documented[200]["content"]["text/html"] = {"schema": {"type": "string"}}
    documented[304] = {"description": "The caller has this report already."}
    return documented


@router.get(
    "/{run_id}/report",
    operation_id="getReport",
    summary="The report of a run",
    description="What the published model is, what it has cost each site round by round, what is "
    "known of its rows, and part by part what was released, what follows from releases, and what "
    "is missing. As data, or as one HTML file for people, by `format` or `Accept`.",
    response_model=Report,
    responses=_documented(),
)
async def report(
    ctx: Ctx,
    who: Reader,
    request: Request,
    run_id: UUID,
    number: WhichRound = "latest",
    named: Annotated[
        Kind | None, Query(alias="format", description="Absent: what `Accept` likes best.")
    ] = None,
    accept: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    kind: Kind = named or preferred(accept, MEDIA, "json", "reports")
    state = request.app.state
    written = await state.reports.get(
        ctx, who, state.models, state.generators, run_id, None if number == "latest" else number
    )
    headers = {**HEADERS, "ETag": written.etag(kind)}
    if etags.has(if_none_match, written.etag(kind)):
        return Response(status_code=304, headers=headers)
    return Response(written.body(kind), headers=headers, media_type=MEDIA[kind])
