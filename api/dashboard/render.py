"""Pages from templates, and errors as pages."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

import psycopg
import structlog
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from api import problems
from api.audit import KINDS
from api.dashboard.doors import SignInNeeded, partial
from api.dashboard.sessions import Visitor
from core.errors import DomainError

log = structlog.get_logger(__name__)
HOME = "/dashboard"
LOGIN = "/dashboard/login"
# No inline script or style, nothing of another host, no frame, forms to here only.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Cookie, HX-Request",
}
_MEDIA = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_TROUBLE = (OperationalError, InterfaceError, PoolTimeout, psycopg.OperationalError)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"))


@dataclass(frozen=True)
class Asset:
    body: bytes
    media: str
    version: str


@cache
def assets() -> dict[str, Asset]:
    """Every file under static/, by its name."""
    found = {}
    for file in (resources.files("api.dashboard") / "static").iterdir():
        body = file.read_bytes()
        media = _MEDIA[file.name.rpartition(".")[2]]
        found[file.name] = Asset(body, media, hashlib.sha256(body).hexdigest()[:16])
    return found


def asset(name: str) -> str:
    """The URL of a file under static/, which changes with the file."""
    return f"{HOME}/static/{name}?v={assets()[name].version}"


def span(seconds: float) -> str:
    """``3 minutes``: in the largest unit of which there are at least two."""
    seconds = abs(seconds)
    unit, name = next(((u, n) for u, n in _UNITS if seconds >= 1.5 * u), (1, "second"))
    count = round(seconds / unit)
    return f"{count} {name}" + ("" if count == 1 else "s")


def since(moment: datetime, now: datetime) -> str:
    """``3 minutes ago`` or ``in 2 hours``."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 0.5:
        return "now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(seconds)}"


def stamp(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def took(start: datetime | None, stop: datetime | None) -> str:
    """The time between, to one decimal of a fitting unit."""
    if start is None or stop is None:
        return "–"
    seconds = (stop - start) / timedelta(seconds=1)
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def eps(value: float) -> str:
    """Epsilon with two decimals, rounded up: what was spent is never shown as less."""
    return f"{math.ceil(round(100 * value, 6)) / 100:.2f}"


def eps_left(value: float) -> str:
    """What is left, rounded down; never below zero."""
    return f"{max(0, math.floor(round(100 * value, 6))) / 100:.2f}"


def many(count: int) -> str:
    """A large number in few characters."""
    if count >= 1_000_000 and count % 100_000 == 0:
        return f"{count / 1_000_000:g} million"
    return f"{count:,}"


def short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def said(value: object) -> str:
    """A detail of an event: short, for its whole is in the trail itself."""
    if isinstance(value, str) and value.startswith("sha256:"):
        return short(value)
    if isinstance(value, str) and _UUID.fullmatch(value):
        return f"{value[:8]}…{value[-4:]}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)[:200]


def plotted(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("api.dashboard", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for shown in (size, eps, eps_left, many, short, stamp, plotted, said):
        made.filters[shown.__name__] = shown
    made.globals.update(asset=asset, since=since, took=took, KINDS=KINDS)
    return made


def page(
    request: Request,
    template: str,
    *,
    live: str | None = None,
    status: int = 200,
    **values: Any,
) -> Response:
    """A page or, for our own script, its part ``live`` that is refreshed."""
    visitor: Visitor | None = getattr(request.state, "visitor", None)
    name = live if live is not None and partial(request) else template
    body = (
        _environment()
        .get_template(name)
        .render(
            visitor=visitor,
            path=request.url.path,
            address=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            **{"now": datetime.now(UTC), "live": live, **values},
        )
    )
    return HTMLResponse(body, status, headers=HEADERS)


def to(path: str) -> Response:
    """See there: after a form, so that loading the page again repeats nothing."""
    return RedirectResponse(path, 303, headers=HEADERS)


def _sign_in(request: Request) -> Response:
    wanted = request.url.path if request.method == "GET" else HOME
    if partial(request):
        wanted = request.url.path.removesuffix("/budget")
        return HTMLResponse("", 401, headers={**HEADERS, "HX-Redirect": _login(wanted)})
    if request.method == "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site":
        # A link in a mail or on another site: the browser keeps a Strict cookie to itself. From a
        # page of ours it sends it.
        return page(request, "bounce.html", wanted=wanted)
    return to(_login(wanted))


def _login(wanted: str) -> str:
    return LOGIN if wanted == HOME else f"{LOGIN}?next={quote(wanted)}"


def _error(request: Request, code: str, detail: str, mend: str | None = None) -> Response:
    status, title = problems.CATALOGUE[code]
    request.scope[problems.SCOPE_KEY] = code
    return page(
        request,
        "error.html",
        live="error_part.html",
        status=status,
        title=title,
        detail=detail,
        mend=mend,
        code=code,
        number=status,
        request_id=problems.request_id_of(request),
    )


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PageRoute(APIRoute):
    """A route whose errors are pages, not problem+json."""

    def get_route_handler(self) -> Handler:
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await answer(request)
            except SignInNeeded:
                return _sign_in(request)
            except RequestValidationError:
                return _error(request, "not-found", "Nothing is found under this address.")
            except _TROUBLE as error:
                log.error("database_trouble", error=type(error).__name__)
                detail = "The database does not answer just now."
                return _error(request, "not-ready", detail, "Load the page again in a moment.")
            except DomainError as error:
                code = error.code if error.code in problems.CATALOGUE else "internal-error"
                if problems.CATALOGUE[code][0] >= 500:
                    log.error("request_failed", code=error.code, detail=error.message)
                    return _error(request, code, "The coordinator's log has the request id.")
                shown = _error(request, code, error.message, error.mend)
                if (seconds := error.facts.get("retry_after_s")) is not None:
                    shown.headers["Retry-After"] = str(seconds)
                return shown
            except Exception:
                log.exception("page_crashed", path=request.url.path)
                detail = "Nobody expected this error. The coordinator's log has the request id."
                return _error(request, "internal-error", detail)

        return guarded
