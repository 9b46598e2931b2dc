"""Opaque bearer tokens: ``fhv_<scope>_<secret>``. Only an HMAC under the pepper is stored.

A lease token is derived, not stored: an HMAC over the row that it leases. Whoever reads the
database can therefore use neither.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.context import Context, Ctx
from api.db.models import SCOPES
from api.guard import address_of
from api.problems import Forbidden, NotFound, TooManyFailures, Unauthenticated

_KNOWN = """
SELECT mac, id, scope, client_id, revoked_at IS NOT NULL,
       coalesce(expires_at <= clock_timestamp() + %(clock)s, false)
FROM tokens WHERE mac = %(mac)s
"""
_STILL_VALID = """
SELECT 1 FROM tokens
WHERE id = %(id)s AND revoked_at IS NULL
  AND coalesce(expires_at > clock_timestamp() + %(clock)s, true)
"""
_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    bearerFormat="fhv_<scope>_<secret>",
    description="Made by `fedhypevae token create`, or returned once when a client is enrolled.",
)

Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


@dataclass(frozen=True)
class Principal:
    """Who calls. A client token acts for ``client_id`` and for nobody else."""

    token_id: UUID
    scope: str
    client_id: UUID | None

    def must_be_client(self, client_id: UUID) -> None:
        """Object-level check. To a stranger another client's things do not exist."""
        if self.scope == "client" and self.client_id != client_id:
            raise NotFound("there is no such client, or it is not yours")


def mac_of(token: str, pepper: bytes) -> bytes:
    return hmac.new(pepper, b"token:" + token.encode(), hashlib.sha256).digest()


def lease_token(row_id: UUID, attempt: int, pepper: bytes) -> str:
    """The proof of a lease: names its row, so that a worker's request says what it is about."""
    message = f"lease:{row_id}:{attempt}".encode()
    mac = hmac.new(pepper, message, hashlib.sha256).hexdigest()
    return f"{row_id}.{attempt}.{mac}"


def read_lease(token: str, pepper: bytes) -> tuple[UUID, int] | None:
    """(row, attempt) of a genuine lease token, else None. Says nothing about its being current."""
    row, _, rest = token.partition(".")
    attempt, _, _ = rest.partition(".")
    try:
        row_id, number = UUID(row), int(attempt)
    except ValueError:
        return None
    genuine = lease_token(row_id, number, pepper)
    if not hmac.compare_digest(genuine.encode(), token.encode()):
        return None
    return row_id, number


async def principal(ctx: Ctx, request: Request, credentials: Bearer) -> Principal:
    """The caller, or 401. Looked up on every request, so a revocation holds at once."""
    if credentials is None:
        raise Unauthenticated(
            "no bearer token was sent", mend="Send 'Authorization: Bearer fhv_...'."
        )
    who = await known(ctx, address_of(request), credentials.credentials)
    structlog.contextvars.bind_contextvars(token_id=str(who.token_id), scope=who.scope)
    return who


async def known(ctx: Context, address: str, token: str) -> Principal:
    """Whose token it is. Raises ``Unauthenticated``, or ``TooManyFailures`` where ``address`` has
    sent too many that nobody has.
    """
    mac = mac_of(token, ctx.settings.pepper)
    admit(ctx, address, mac)
    found = await ctx.database.glance(_KNOWN, mac=mac)
    if not found or not hmac.compare_digest(bytes(found[0][0]), mac):
        raise _refused(ctx, address, mac, "unknown", "the bearer token is not known here")
    _, token_id, scope, client_id, revoked, expired = found[0]
    if revoked:
        raise _refused(ctx, address, mac, "revoked", "the bearer token was revoked")
    if expired:
        raise _refused(ctx, address, mac, "expired", "the bearer token has expired")
    ctx.guard.accepted(mac)
    return Principal(token_id, scope, client_id)


def _refused(ctx: Context, address: str, mac: bytes, reason: str, why: str) -> Unauthenticated:
    failed(ctx, address, mac, reason)
    return Unauthenticated(why)


def admit(ctx: Context, address: str, mac: bytes) -> None:
    """Raises ``TooManyFailures`` where nobody should look at these credentials now."""
    try:
        ctx.guard.admit(address, mac)
    except TooManyFailures:
        ctx.meters.auth_failures.labels("throttled").inc()
        raise


def failed(ctx: Context, address: str, mac: bytes, reason: str) -> None:
    """These credentials were looked at and are not valid."""
    ctx.guard.failed(address, mac)
    ctx.meters.auth_failures.labels(reason).inc()


async def still_valid(ctx: Context, who: Principal) -> bool:
    """Would the caller's token be accepted now? For answers that last."""
    found = await ctx.database.glance(_STILL_VALID, id=who.token_id)
    return bool(found)


class Door:
    """A dependency of a route that lets callers in. Its ``scopes`` can be read from the route:
    api/access.py does.
    """

    scopes: tuple[str, ...]


class Allow(Door):
    """Lets these scopes in and refuses the others with 403."""

    def __init__(self, *scopes: str) -> None:
        unknown = set(scopes) - set(SCOPES)
        if unknown:
            raise ValueError(f"unknown scopes {sorted(unknown)}")
        self.scopes = scopes

    async def __call__(self, who: Annotated[Principal, Depends(principal)]) -> Principal:
        if who.scope not in self.scopes:
            raise Forbidden(
                f"a token of scope {who.scope!r} may not do that; "
                f"needed: {' or '.join(self.scopes)}"
            )
        return who


Admin = Annotated[Principal, Depends(Allow("admin"))]
Anyone = Annotated[Principal, Depends(Allow(*SCOPES))]
ClientOnly = Annotated[Principal, Depends(Allow("client"))]
WorkerOnly = Annotated[Principal, Depends(Allow("worker"))]
ClientOrWorker = Annotated[Principal, Depends(Allow("client", "worker"))]
AdminOrClient = Annotated[Principal, Depends(Allow("admin", "client"))]
Overseer = Annotated[Principal, Depends(Allow("admin", "auditor"))]
OverseerOrClient = Annotated[Principal, Depends(Allow("admin", "auditor", "client"))]
AdminOrClientOrWorker = Annotated[Principal, Depends(Allow("admin", "client", "worker"))]
Involved = Annotated[Principal, Depends(Allow("admin", "auditor", "client", "worker"))]
OverseerOrWorker = Annotated[Principal, Depends(Allow("admin", "auditor", "worker"))]
Reader = Annotated[Principal, Depends(Allow("admin", "auditor", "scientist"))]
Scientist = Annotated[Principal, Depends(Allow("scientist", "admin"))]
