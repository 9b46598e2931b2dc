"""The outermost layer: request ids, the limits of bodies (api.bodies), the protocol, headers that
keep browsers from doing more with an answer than it is meant for, one log line.

Plain ASGI, because it must see bodies before anything reads them and must answer in
problem+json. Bodies, tokens and query strings are never logged.
"""

from __future__ import annotations

import json
import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import bodies, problems
from api.bodies import Limits
from api.metrics.meters import UNMATCHED, Meters
from api.protocol import SCOPE_KEY, negotiated
from core.errors import DomainError
from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER, SPOKEN

REQUEST_ID_HEADER = "X-Request-ID"
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
# The one route whose bodies are large; it enforces the exact limit of its round by itself.
_UPLOAD = re.compile(r"^/v1/runs/[^/]+/rounds/[^/]+/updates/[^/]+$")

_PAGE = "text/html"
# An answer that is not a page may load nothing and be framed by nobody, whatever a browser takes it
# for. Pages (/docs, /redoc) have scripts of their own; the report's own policy is stricter.
_POLICY = "default-src 'none'; frame-ancestors 'none'"
_POLICY_OF_PAGES = "frame-ancestors 'none'; base-uri 'none'; object-src 'none'; form-action 'self'"
SECURITY_HEADERS = {
    "Cache-Control": "no-store",  # tokens, ledgers: what may be kept says so by itself
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

log = structlog.get_logger("api.access")


def _protect(answer: MutableHeaders) -> None:
    """The security headers, where an answer does not have its own."""
    for name, value in SECURITY_HEADERS.items():
        answer.setdefault(name, value)
    page = answer.get("Content-Type", "").startswith(_PAGE)
    answer.setdefault("Content-Security-Policy", _POLICY_OF_PAGES if page else _POLICY)


_CRASHED = "An error that nobody expected; the coordinator's log has the request id."


class _Crashed(DomainError):
    code = "internal-error"


class Outermost:
    def __init__(self, app: ASGIApp, limits: Limits, meters: Meters) -> None:
        self.app = app
        self.meters = meters
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.match(given) else str(uuid.uuid4())
        scope["fhv.request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status, used = 0, SPOKEN.newest

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID_HEADER] = request_id
                answer[PROTOCOL_HEADER], answer[RANGE_HEADER] = str(used), str(SPOKEN)
                _protect(answer)
            await send(message)

        try:
            refused = self._refusal(scope, headers)
            used = scope.get(SCOPE_KEY, used)
            if refused is not None:
                scope[problems.SCOPE_KEY] = refused.code
                await _send_problem(refused, request_id, send_with_id)
            else:
                await self.app(scope, self._limited(scope, receive, headers), send_with_id)
        except Exception:
            log.exception("request_crashed", method=scope["method"], path=scope["path"])
            if status:  # half an answer is out: the server must cut the connection
                raise
            scope[problems.SCOPE_KEY] = _Crashed.code
            await _send_problem(_Crashed(_CRASHED), request_id, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            self.meters.request(
                route=getattr(scope.get("route"), "path", UNMATCHED),
                method=scope["method"],
                status=status,
                seconds=seconds,
                code=scope.get(problems.SCOPE_KEY),
            )
            if scope["path"] not in _QUIET:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    address=(scope.get("client") or ("",))[0],
                    status=status,
                    ms=round(1000 * seconds, 1),
                )

    def _refusal(self, scope: Scope, headers: Headers) -> DomainError | None:
        try:
            scope[SCOPE_KEY] = negotiated(headers)
        except problems.UnsupportedProtocol as refusal:
            return refusal
        if "\0" in scope["path"]:
            return problems.InvalidRequest("the path holds U+0000", field="path")
        length = headers.get("content-length", "0")
        large = length.isdigit() and int(length) > self.limits.max_bytes
        if large and not _UPLOAD.match(scope["path"]):
            return bodies.too_large(self.limits.max_bytes)
        return bodies.refusal(headers)

    def _limited(self, scope: Scope, receive: Receive, headers: Headers) -> Receive:
        upload = _UPLOAD.match(scope["path"]) is not None
        is_json = not upload and "json" in headers.get("content-type", "").lower()
        return bodies.Body(receive, self.limits, whole=not upload, is_json=is_json).receive


async def _send_problem(error: DomainError, request_id: str, send: Send) -> None:
    body = problems.of_domain_error(error, request_id)
    await send(
        {
            "type": "http.response.start",
            "status": body["status"],
            "headers": [(b"content-type", problems.CONTENT_TYPE.encode())],
        }
    )
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
