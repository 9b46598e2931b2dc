"""Who may open a page, and who may send a form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl

import structlog
from fastapi import Depends, Request

from api.auth import Door
from api.context import Ctx
from api.dashboard import sessions
from api.dashboard.sessions import Visitor
from api.problems import Forbidden, InvalidRequest, PayloadTooLarge

_MOST_BYTES = 16_384
_FORM = "application/x-www-form-urlencoded"
CSRF_FIELD = "csrf"
# Fetch metadata of a request that a page of ours, or the person at the browser, has made.
_OURS = frozenset({"same-origin", "none"})


class SignInNeeded(Exception):
    """The browser is not signed in (any more)."""


def partial(request: Request) -> bool:
    """A part of a page is asked for by our own script."""
    return request.headers.get("HX-Request") == "true"


class Enter(Door):
    """Lets sessions of tokens of these scopes in."""

    def __init__(self, *scopes: str) -> None:
        self.scopes = scopes

    async def __call__(self, ctx: Ctx, request: Request) -> Visitor:
        visitor = await sessions.find(ctx, sessions.cookie_of(ctx, request))
        if visitor is None:
            raise SignInNeeded
        structlog.contextvars.bind_contextvars(
            token_id=str(visitor.who.token_id), scope=visitor.who.scope
        )
        request.state.visitor = visitor
        if visitor.who.scope not in self.scopes:
            raise Forbidden(
                f"This page is for tokens of scope {' or '.join(self.scopes)}; you are signed in "
                f"with one of scope {visitor.who.scope}.",
                mend="To see it, sign out and sign in again with a token of that scope.",
            )
        if not partial(request):  # pages that refresh themselves are nobody's doing
            await sessions.touch(ctx, visitor)
        return visitor


@dataclass(frozen=True)
class Sent:
    """A form that a page of this session has sent."""

    visitor: Visitor
    fields: Mapping[str, str]

    def text(self, name: str, most: int = 200) -> str:
        """A field that must say something. Raises ``InvalidRequest``."""
        value = self.fields.get(name, "").strip()
        if not value:
            raise InvalidRequest("This field must not be empty.", field=name)
        if len(value) > most:
            raise InvalidRequest(f"At most {most} characters fit here.", field=name)
        return value


async def fields(request: Request) -> dict[str, str]:
    """The fields of a form; of those that come twice the last one."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != _FORM:
        raise InvalidRequest("A form was expected.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise PayloadTooLarge(f"A form must not be larger than {_MOST_BYTES} bytes.")
    try:
        found = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=50))
    except ValueError:
        raise InvalidRequest("The form cannot be read.") from None
    if any("\x00" in value for value in found.values()):
        raise InvalidRequest("The form holds characters that no text has.")
    return found


def must_be_ours(request: Request, sent: Mapping[str, str], expected: str) -> None:
    """Raises ``Forbidden`` for a form that another site's page may have made the browser send."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in _OURS:
        raise Forbidden("This form was sent by another site's page.")
    if not expected or not sessions.same(sent.get(CSRF_FIELD, ""), expected):
        raise Forbidden(
            "This form is not of your present session.",
            mend="Go back, load the page again, and repeat it.",
        )


class Act(Door):
    """Lets forms of sessions of these scopes in, with their CSRF token."""

    def __init__(self, *scopes: str) -> None:
        self._enter, self.scopes = Enter(*scopes), scopes

    async def __call__(self, ctx: Ctx, request: Request) -> Sent:
        visitor = await self._enter(ctx, request)
        sent = await fields(request)
        must_be_ours(request, sent, visitor.csrf)
        return Sent(visitor, sent)


Overseeing = Annotated[Visitor, Depends(Enter("admin", "auditor"))]
Reading = Annotated[Visitor, Depends(Enter("admin", "auditor", "scientist"))]
Operating = Annotated[Visitor, Depends(Enter("admin"))]
Acting = Annotated[Sent, Depends(Act("admin"))]
Leaving = Annotated[Sent, Depends(Act("admin", "auditor", "scientist"))]
