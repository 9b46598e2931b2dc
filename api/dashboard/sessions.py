"""Who is signed in: a random cookie, of which the database holds an HMAC, bound to a token's row.

Every request looks the session up together with its token, so a token that is revoked or has
expired ends all its sessions at once. The cookie opens the pages under /dashboard and nothing else:
the API takes bearer tokens only, so another site's page can make a browser do nothing there.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from uuid import UUID

from fastapi import Request, Response

from api.auth import Principal
from api.context import Context
from api.db.base import uuid7

# Browsers take a __Host- cookie only from HTTPS (or from this machine), for this host and all
# paths: nobody beside us can plant one.
COOKIE = "__Host-fhv-dashboard"
# Of the form with which one signs in, so that nobody can sign somebody else in as himself.
FORM_COOKIE = "__Host-fhv-sign-in"
# With FHV_ENV=dev, on this machine, without TLS: some browsers keep no Secure cookie there.
_PREFIX = "__Host-"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_SECRET_BYTES = 32
_TOUCH_S = 30

_FIND = """
    SELECT s.mac, s.id, t.id, t.scope, t.label
    FROM dashboard_sessions AS s JOIN tokens AS t ON t.id = s.token_id,
         (SELECT clock_timestamp() + %(clock)s AS now) AS clock
    WHERE s.mac = %(mac)s AND s.expires_at > now
      AND s.seen_at > now - make_interval(secs => %(idle)s)
      AND t.revoked_at IS NULL AND coalesce(t.expires_at > now, true)
"""
_OPEN = """
    WITH clock AS (SELECT clock_timestamp() + %(clock)s AS now), gone AS (
        DELETE FROM dashboard_sessions USING clock
        WHERE expires_at <= now OR seen_at <= now - make_interval(secs => %(idle)s)
    )
    INSERT INTO dashboard_sessions (id, token_id, mac, seen_at, expires_at)
    SELECT %(id)s, %(token_id)s, %(mac)s, now, now + make_interval(secs => %(lasts)s) FROM clock
    ON CONFLICT DO NOTHING RETURNING 1
"""
_TOUCH = """
    UPDATE dashboard_sessions SET seen_at = clock_timestamp() + %(clock)s
    WHERE id = %(id)s
      AND seen_at < clock_timestamp() + %(clock)s - make_interval(secs => %(pause)s)
    RETURNING 1
"""
_CLOSE = "DELETE FROM dashboard_sessions WHERE mac = %(mac)s RETURNING 1"


@dataclass(frozen=True)
class Visitor:
    """Somebody who is signed in. ``csrf`` must come with every form of this session."""

    session_id: UUID
    who: Principal
    label: str
    csrf: str

    @property
    def may_act(self) -> bool:
        return self.who.scope == "admin"

    @property
    def oversees(self) -> bool:
        return self.who.scope in ("admin", "auditor")


def _mac(ctx: Context, purpose: bytes, secret: str) -> bytes:
    key = ctx.settings.pepper
    return hmac.new(key, b"dashboard-" + purpose + b":" + secret.encode(), hashlib.sha256).digest()


def csrf_of(ctx: Context, secret: str) -> str:
    """The token of forms that belongs to a cookie. Nobody can make it without the pepper."""
    return _mac(ctx, b"csrf", secret).hex()


def same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _must_be_secure(ctx: Context, request: Request) -> bool:
    plain = request.url.scheme == "http" and request.url.hostname in _LOOPBACK
    return not (ctx.settings.env == "dev" and plain)


def _name(name: str, secure: bool) -> str:
    return name if secure else name.removeprefix(_PREFIX)


def set_cookie(
    ctx: Context, request: Request, response: Response, secret: str, name: str = COOKIE
) -> None:
    """Until the browser closes; the server ends it sooner. An empty ``secret`` deletes it."""
    secure = _must_be_secure(ctx, request)
    response.set_cookie(
        _name(name, secure),
        secret,
        max_age=None if secret else 0,
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def cookie_of(ctx: Context, request: Request, name: str = COOKIE) -> str:
    """What the browser sent; empty: nothing."""
    return request.cookies.get(_name(name, _must_be_secure(ctx, request)), "")


def new_secret() -> str:
    return secrets.token_urlsafe(_SECRET_BYTES)


async def begin(ctx: Context, who: Principal) -> str:
    """A new session of this token; its cookie. Sessions that have ended are deleted."""
    secret = new_secret()
    await ctx.database.act(
        _OPEN,
        id=uuid7(),
        token_id=who.token_id,
        mac=_mac(ctx, b"session", secret),
        idle=ctx.settings.dashboard_idle_s,
        lasts=ctx.settings.dashboard_session_s,
    )
    return secret


async def find(ctx: Context, secret: str) -> Visitor | None:
    """Whose cookie it is, if the session and its token are valid now."""
    if not secret:
        return None
    mac = _mac(ctx, b"session", secret)
    found = await ctx.database.glance(_FIND, mac=mac, idle=ctx.settings.dashboard_idle_s)
    if not found or not hmac.compare_digest(bytes(found[0][0]), mac):
        return None
    _, session_id, token_id, scope, label = found[0]
    return Visitor(session_id, Principal(token_id, scope, None), label, csrf_of(ctx, secret))


async def touch(ctx: Context, visitor: Visitor) -> None:
    """Somebody did something: the idle time begins again."""
    await ctx.database.act(_TOUCH, id=visitor.session_id, pause=_TOUCH_S)


async def end(ctx: Context, secret: str) -> None:
    """Signed out; the cookie opens nothing any more."""
    await ctx.database.act(_CLOSE, mac=_mac(ctx, b"session", secret))
