"""Spans of the coordinator: one for each request, and one for each statement within a trace.

Only where a collector is configured; else neither the middleware nor the listeners exist.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Engine, event
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.metrics.meters import UNMATCHED
from core import tracing

# Asked by machines all the time, and by sites: how long a site works is not anybody's to know.
_UNTRACED = re.compile(r"/healthz|/readyz|/metrics|/v1/(work|clients|plans)(/.*)?|.*/updates/[^/]+")
_SPAN = "fhv_span"


class Traced:
    """The outermost layer of all: the span ends with the last byte of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _UNTRACED.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        method, status = scope["method"], 0

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        parent = Headers(scope=scope).get(tracing.HEADER)
        with tracing.span(method, "server", {"http.request.method": method}, parent=parent) as span:
            try:
                await self.app(scope, receive, seen)
            finally:
                route = getattr(scope.get("route"), "path", UNMATCHED)
                found = {
                    "http.route": route,
                    "http.response.status_code": status,
                    "fhv.request_id": str(scope.get("fhv.request_id", "")),
                }
                code = scope.get(problems.SCOPE_KEY)
                span.note(found | ({"fhv.problem": code} if code else {}), f"{method} {route}")
                if status >= 500:
                    span.fail(str(status))


def watch(engine: Engine) -> None:
    """A span for each statement of this engine: its first word, and nothing of what it holds."""

    def before(
        connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool
    ) -> None:
        connection.info[_SPAN] = tracing.begin(*named(statement))

    def after(
        connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool
    ) -> None:
        _end(connection.info.pop(_SPAN, None))

    def failed(found: Any) -> None:
        if found.connection is not None:
            _end(found.connection.info.pop(_SPAN, None), type(found.original_exception).__name__)

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    event.listen(engine, "handle_error", failed)


def named(statement: str) -> tuple[str, tracing.Kind, dict[str, tracing.Value]]:
    """What a statement's span is made of."""
    word = statement.split(None, 1)[0].upper() if statement.strip() else "SQL"
    return word, "client", {"db.system.name": "postgresql", "db.operation.name": word}


def _end(span: tracing.Span | None, error: str | None = None) -> None:
    if span is not None:
        if error is not None:
            span.fail(error)
        span.end()
