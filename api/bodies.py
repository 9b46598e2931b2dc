"""Bodies of requests as they come in: how large, how slowly, in which coding, how strict.

A body that comes too slowly is answered with 408 and its connection closed: whoever sends a byte
now and then would hold a connection, and what the handler holds, for ever. The time allowed grows
with what has come, so that a large update over a slow line is no attack.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from api.problems import (
    InvalidRequest,
    PayloadTooLarge,
    Refused,
    RequestTimeout,
    UnsupportedMediaType,
)
from core.errors import DomainError
from core.wire import strict_json


@dataclass(frozen=True)
class Limits:
    """``grace_s`` and ``min_rate`` (bytes a second): a body of n bytes has come within
    ``grace_s + n / min_rate`` seconds. ``max_bytes`` is of bodies that are read as a whole.
    """

    max_bytes: int
    grace_s: float
    min_rate: float


def refusal(headers: Headers) -> DomainError | None:
    """What is refused before any of a body is read: it would have to be unpacked first."""
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return None
    return UnsupportedMediaType(
        "bodies are taken as they are, without a content coding",
        field="Content-Encoding",
        mend="Send the body uncompressed, without this header.",
    )


class Body:
    """Stands between the server and whoever reads the body of one request.

    ``whole``: the reader takes the body as a whole, so ``max_bytes`` holds; else the reader has a
    limit of its own. ``is_json``: it must be strict JSON.
    """

    def __init__(self, receive: Receive, limits: Limits, *, whole: bool, is_json: bool) -> None:
        self._receive, self._limits = receive, limits
        self._whole, self._is_json = whole, is_json
        self._started = time.monotonic()
        self._total, self._ended = 0, False
        self._kept: list[bytes] = []

    async def receive(self) -> Message:
        """The server's next message. Raises ``Refused`` (FastAPI lets an ``HTTPException`` through
        while it reads a body, nothing else).
        """
        if self._ended:  # from now on a reader waits for the caller to go away: no hurry
            return await self._receive()
        message = await self._within_time()
        if message["type"] != "http.request":
            self._ended = True
            return message
        chunk = message.get("body", b"")
        self._total += len(chunk)
        self._ended = not message.get("more_body", False)
        if self._whole and self._total > self._limits.max_bytes:
            raise Refused(too_large(self._limits.max_bytes))
        if self._is_json:
            self._kept.append(chunk)
            if self._ended:
                self._check()
        return message

    async def _within_time(self) -> Message:
        allowed = self._limits.grace_s + self._total / self._limits.min_rate
        left = self._started + allowed - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0.0)):
                return await self._receive()
        except TimeoutError:
            slow = RequestTimeout(
                f"the body comes too slowly: {self._total} bytes in {allowed:.0f} s",
                mend=f"Send it at {self._limits.min_rate:.0f} bytes a second or more.",
            )
            raise Refused(slow, headers={"Connection": "close"}) from None

    def _check(self) -> None:
        body = b"".join(self._kept)
        self._kept.clear()
        if not body:
            return
        try:
            strict_json.read(body)
        except strict_json.NotStrict as error:
            named = f"{error.field}: {error}" if error.field != "body" else str(error)
            raise Refused(InvalidRequest(named, field=error.field)) from None


def too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body must not be larger than {limit} bytes")
