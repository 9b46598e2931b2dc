"""Connections under limits that uvicorn does not have: how long a request's head may take, how
large it may be, how many connections a process holds, how long a body may go on once answered.

Bodies that are being read have their limits in ``api.bodies``, where the reader is known.
"""

from __future__ import annotations

import json
from asyncio import TimerHandle, Transport
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar
from uuid import uuid4

import structlog
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import CATALOGUE, CONTENT_TYPE, body_of

log = structlog.get_logger(__name__)
# A sender that reads no answer before it has sent everything gets so long, and so many bytes, to
# finish: cut off earlier, it would never see the answer.
_LINGER_S = 10.0
_LINGER_BYTES = 16 * 2**20
# Bytes that frame a chunked body, for each byte of it: chunks of one byte need five.
_FRAMING = 8
_HEADER_FRAMING = 4  # bytes: the colon, a space, the line's end
_RETRY_AFTER_S = 5


@dataclass(frozen=True)
class HeadLimits:
    """Of a request's line and headers (and trailers), and of connections of this process."""

    timeout_s: float
    max_bytes: int
    max_connections: int


def _problem(code: str, detail: str, mend: str | None = None) -> tuple[int, list[str], bytes]:
    """Status, header lines and body of an answer that no application gives."""
    status = CATALOGUE[code][0]
    body = json.dumps(body_of(code, detail, request_id=str(uuid4()), mend=mend)).encode()
    lines = [
        f"content-type: {CONTENT_TYPE}",
        f"content-length: {len(body)}",
        "cache-control: no-store",
        "connection: close",
    ]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        lines.append(f"retry-after: {_RETRY_AFTER_S}")
    return status, lines, body


async def _overloaded(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of a connection too many."""
    status, lines, body = _problem(
        "overloaded", "This process holds as many connections as it may.", "Try again."
    )
    pairs = [line.encode().split(b": ", 1) for line in lines]
    start: Message = {"type": "http.response.start", "status": status, "headers": pairs}
    await send(start)
    await send({"type": "http.response.body", "body": body})


class Guarded(HttpToolsProtocol):
    """One connection. ``limits`` is set by ``guarded``."""

    limits: ClassVar[HeadLimits]
    _timer: TimerHandle | None = None
    _in_head = True
    _silent = True  # nothing has come on this connection
    _framing = 0  # bytes of the present message that are not of its body
    _body = 0
    _named = 0  # bytes of its URL, headers and trailers
    _unwanted = 0  # bytes of its body that came after the answer
    _too_large = False

    # --- what asyncio calls ---

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start(self.limits.timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._silent = False
        if self._in_head and self._timer is None:
            self._start(self.limits.timeout_s)
        self._framing += len(data)
        super().data_received(data)
        if self._framing > self.limits.max_bytes + _FRAMING * self._body:
            self._refuse_head()

    # --- what the parser calls ---

    def on_message_begin(self) -> None:
        self._body = self._named = self._unwanted = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._name(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._name(len(name) + len(value) + _HEADER_FRAMING)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._framing = False, 0
        self._stop()
        if len(self.connections) > self.limits.max_connections:
            log.warning("too_many_connections", held=len(self.connections))
            self.app = _overloaded
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._framing = max(self._framing - len(body), 0)
        if self.cycle.response_complete:
            self._unwanted += len(body)
            if self._unwanted > _LINGER_BYTES:
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head, self._framing = True, 0
        self._stop()
        super().on_message_complete()

    # --- what the answer calls ---

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head:  # the body is still coming, and nobody wants it
            self._start(_LINGER_S)

    # --- limits ---

    def _name(self, size: int) -> None:
        self._named += size
        if self._named > self.limits.max_bytes:
            self._too_large = True
            raise ValueError("the head is too large")  # the parser stops

    def _start(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._in_head and not self._silent and not self.transport.is_closing():
            seconds = self.limits.timeout_s
            self._answer("request-timeout", f"The headers have not come within {seconds:g} s.")
        self.transport.close()

    def _refuse_head(self) -> None:
        if self.transport.is_closing():
            return
        detail = f"A request's line and headers have at most {self.limits.max_bytes} bytes."
        if self._in_head:  # else an answer may be on its way
            self._answer("headers-too-large", detail)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or too much of it."""
        if self._too_large:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _answer(self, code: str, detail: str) -> None:
        status, lines, body = _problem(code, detail)
        head = "\r\n".join([f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *lines, "", ""])
        self.transport.write(head.encode() + body)


def guarded(limits: HeadLimits) -> type[HttpToolsProtocol]:
    """The protocol class for ``uvicorn.Config(http=...)``."""
    return type("GuardedConnection", (Guarded,), {"limits": limits})
