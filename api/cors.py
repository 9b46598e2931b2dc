"""Calls from pages of other origins: refused by browsers unless the operator lists the origin.

Listed origins get no credentials of the browser: a token is sent by whoever has it, never by a
cookie. Requests that are refused before anything else (too large, other protocols) are answered
without these headers; a page sees that they failed, not why.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from api.idempotency import REPLAYED_HEADER
from core.wire.messages import LEASE_HEADER
from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER

_METHODS = ("GET", "POST", "PUT", "DELETE")
_SENT = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Range",
    "X-Request-ID",
    LEASE_HEADER,
    PROTOCOL_HEADER,
    RANGE_HEADER,
)
_READ = (
    "Content-Range",
    "ETag",
    REPLAYED_HEADER,
    "Link",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-FHV-Label",
    "X-FHV-Model",
    "X-FHV-Receipt",
    "X-FHV-Seed",
    "X-Request-ID",
    PROTOCOL_HEADER,
    RANGE_HEADER,
)
_REMEMBERED_S = 600


def install(app: FastAPI, origins: list[str]) -> None:
    """Let pages of these origins call the API."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=_METHODS,
        allow_headers=_SENT,
        expose_headers=_READ,
        allow_credentials=False,
        max_age=_REMEMBERED_S,
    )
