"""Signing in and out, and the files that pages need."""

from __future__ import annotations

import re
from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request, Response

from api import audit, auth
from api.context import Context, Ctx
from api.dashboard import sessions
from api.dashboard.doors import Leaving, fields, must_be_ours
from api.dashboard.render import HEADERS, HOME, LOGIN, PageRoute, assets, page, to
from api.guard import address_of
from api.problems import NotFound, Unauthenticated

router = APIRouter(prefix=HOME, include_in_schema=False, route_class=PageRoute)
log = structlog.get_logger(__name__)
SCOPES = ("admin", "auditor", "scientist")
# Not a word about which of these it was.
WRONG = "That is not a token that is valid here. It may be mistyped, revoked or expired."
_PAGES = re.compile(r"/dashboard(?:/[A-Za-z0-9-]+)*")


def _wanted(path: str) -> str:
    """Where to go after signing in: a page of ours, whatever the address said."""
    return path if _PAGES.fullmatch(path) and not path.startswith(LOGIN) else HOME


def _form(
    ctx: Context,
    request: Request,
    wanted: str,
    *,
    status: int = 200,
    wrong: str = "",
    ended: bool = False,
) -> Response:
    secret = sessions.new_secret()
    answer = page(
        request,
        "login.html",
        status=status,
        csrf=sessions.csrf_of(ctx, secret),
        wanted=wanted,
        wrong=wrong,
        ended=ended,
    )
    sessions.set_cookie(ctx, request, answer, secret, sessions.FORM_COOKIE)
    return answer


@router.get("/login")
async def form(
    ctx: Ctx,
    request: Request,
    wanted: Annotated[str, Query(alias="next", max_length=200)] = HOME,
    out: bool = False,
) -> Response:
    if await sessions.find(ctx, sessions.cookie_of(ctx, request)) is not None:
        return to(_wanted(wanted))
    ended = bool(sessions.cookie_of(ctx, request)) and wanted != HOME
    return _form(ctx, request, _wanted(wanted), ended=ended or out)


@router.post("/login")
async def sign_in(ctx: Ctx, request: Request) -> Response:
    sent = await fields(request)
    wanted = _wanted(sent.get("next", HOME))
    cookie = sessions.cookie_of(ctx, request, sessions.FORM_COOKIE)
    must_be_ours(request, sent, sessions.csrf_of(ctx, cookie) if cookie else "")
    try:
        # Counts as a failed authentication where it is one: guessing is answered with 429.
        who = await auth.known(ctx, address_of(request), sent.get("token", "").strip())
    except Unauthenticated:
        log.warning("sign_in_refused")
        return _form(ctx, request, wanted, status=401, wrong=WRONG)
    if who.scope not in SCOPES:
        wrong = (
            f"A token of scope {who.scope} has no pages here: it is for a program. Sign in with "
            f"one of scope {', '.join(SCOPES[:-1])} or {SCOPES[-1]}."
        )
        return _form(ctx, request, wanted, status=403, wrong=wrong)
    secret = await sessions.begin(ctx, who)
    async with ctx.database.write() as session:
        await audit.record(session, "dashboard-entered", who)
    answer = to(wanted)
    sessions.set_cookie(ctx, request, answer, secret)
    sessions.set_cookie(ctx, request, answer, "", sessions.FORM_COOKIE)
    return answer


@router.post("/logout")
async def sign_out(ctx: Ctx, request: Request, sent: Leaving) -> Response:
    await sessions.end(ctx, sessions.cookie_of(ctx, request))
    async with ctx.database.write() as session:
        await audit.record(session, "dashboard-left", sent.visitor.who)
    answer = to(f"{LOGIN}?out=true")
    sessions.set_cookie(ctx, request, answer, "")
    return answer


@router.get("/static/{name}")
async def static(name: str) -> Response:
    found = assets().get(name)
    if found is None:
        raise NotFound("There is no such file.")
    headers = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
    return Response(found.body, headers=headers, media_type=found.media)
