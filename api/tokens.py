"""Bearer tokens: made (shown once), listed, revoked. Used by HTTP and by the command line."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit, auth, examples
from api.auth import Admin
from api.context import Ctx
from api.db.base import uuid7
from api.db.engine import Database
from api.db.models import SCOPES, Client, Token
from api.openapi import answers, example
from api.pages import DEFAULT_LIMIT, After, Limit, Page, cut, paged
from api.problems import InvalidRequest, NotFound
from core.federation.values import Line
from core.wire.credentials import new_token

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


class NewToken(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scope: Literal["admin", "client", "worker", "scientist", "auditor"]
    label: Line = Field(min_length=1, max_length=100, description="Whose it is, for people.")
    client: str | None = Field(default=None, description="Client's name; for scope 'client' only.")
    expires_in_s: float | None = Field(default=None, gt=0, le=10 * 366 * 86_400)
    renewable: bool = Field(
        default=False,
        description="Its holder may replace it (POST /v1/tokens/me/rotate) by one that lives as "
        "long as this one; otherwise a replacement ends when this one would have ended.",
    )


class TokenView(BaseModel):
    id: UUID
    scope: str
    label: str
    client_id: UUID | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    renewable: bool = False
    replaced_by: UUID | None = None


class TokenMade(TokenView):
    token: str = Field(description="Shown once; only an HMAC of it is stored.")


def view(row: Token) -> TokenView:
    return TokenView(
        id=row.id,
        scope=row.scope,
        label=row.label,
        client_id=row.client_id,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        renewable=row.renewal_s is not None,
        replaced_by=row.replaced_by,
    )


async def add(
    session: AsyncSession,
    mac: bytes,
    *,
    scope: str,
    label: str,
    client_id: UUID | None = None,
    expires_at: datetime | None = None,
    renewal_s: float | None = None,
) -> Token:
    """A token's row. Raises ``InvalidRequest`` if there is a token with this ``mac``."""
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}: one of {', '.join(SCOPES)}")
    made: Token | None = await session.scalar(
        insert(Token)
        .values(
            id=uuid7(),
            scope=scope,
            label=label,
            client_id=client_id,
            mac=mac,
            expires_at=expires_at,
            renewal_s=renewal_s,
        )
        .on_conflict_do_nothing(index_elements=["mac"])
        .returning(Token)
    )
    if made is None:
        raise InvalidRequest(
            "this token is not new", field="token", mend="Make it of 32 fresh random bytes."
        )
    return made


async def issue(
    session: AsyncSession, pepper: bytes, *, scope: str, secret: str | None = None, **about: Any
) -> tuple[Token, str]:
    """A new token's row (see ``add``) and its text, which exists nowhere else; with ``secret`` it
    is one that its holder has made.
    """
    text = new_token(scope) if secret is None else secret
    return await add(session, auth.mac_of(text, pepper), scope=scope, **about), text


async def make(
    session: AsyncSession, database: Database, who: audit.Actor, pepper: bytes, body: NewToken
) -> TokenMade:
    """Check the request and make the token."""
    client_id: UUID | None = None
    if (body.scope == "client") != (body.client is not None):
        raise InvalidRequest("'client' goes with scope 'client' and only with it", field="client")
    if body.client is not None:
        client = await session.scalar(select(Client).where(Client.name == body.client))
        if client is None:
            raise InvalidRequest(f"there is no client {body.client!r}", field="client")
        if client.managed:
            raise InvalidRequest(
                f"{body.client!r} is managed: the worker acts for it with a worker token",
                field="client",
            )
        if client.revoked_at is not None:
            raise InvalidRequest(f"{body.client!r} was revoked", field="client")
        client_id = client.id
    expires_at = None
    if body.renewable and body.expires_in_s is None:
        raise InvalidRequest(
            "a token without an end needs no renewal", field="renewable", mend="Give expires_in_s."
        )
    if body.expires_in_s is not None:
        expires_at = await database.now(session) + timedelta(seconds=body.expires_in_s)
    row, secret = await issue(
        session,
        pepper,
        scope=body.scope,
        label=body.label,
        client_id=client_id,
        expires_at=expires_at,
        renewal_s=body.expires_in_s if body.renewable else None,
    )
    await audit.record(
        session, "token-created", who, client_id=client_id, token=str(row.id), scope=row.scope
    )
    return TokenMade(token=secret, **view(row).model_dump())


async def revoke(
    session: AsyncSession, database: Database, who: audit.Actor, token_id: UUID
) -> Token:
    """From now on the token is refused, and so are those that replaced it: whoever has stolen it
    may have made them. Revoking twice keeps the first time.
    """
    row = await session.get(Token, token_id, with_for_update={"key_share": True})
    if row is None:
        raise NotFound(f"there is no token {token_id}")
    if row.revoked_at is None:
        row.revoked_at = await database.now(session)
        await audit.record(
            session, "token-revoked", who, client_id=row.client_id, token=str(row.id)
        )
    if row.replaced_by is not None:
        await revoke(session, database, who, row.replaced_by)
    return row


async def page(
    session: AsyncSession, limit: int, after: UUID | None
) -> tuple[list[TokenView], UUID | None]:
    rows = (await session.scalars(cut(select(Token), Token.id, limit, after))).all()
    shown, more = paged(rows, limit)
    return [view(row) for row in shown], shown[-1].id if more else None


@router.post(
    "",
    operation_id="createToken",
    summary="Make a bearer token",
    description="The token's text is in this answer only. With scope 'client' it acts for one "
    "client: make a new one and revoke the old one to rotate.",
    status_code=201,
    responses=answers(201, examples.TOKEN_MADE, "Made."),
)
async def create(
    ctx: Ctx, who: Admin, body: Annotated[NewToken, example(examples.TOKEN_NEW)]
) -> TokenMade:
    async with ctx.database.write() as session:
        return await make(session, ctx.database, who, ctx.settings.pepper, body)


@router.get(
    "",
    operation_id="listTokens",
    summary="List tokens",
    description="Without their texts, which nobody has; revoked ones too. Oldest first.",
    responses=answers(200, examples.page(examples.TOKEN), "One page."),
)
async def listed(
    ctx: Ctx, who: Admin, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Page[TokenView]:
    async with ctx.database.read() as session:
        items, following = await page(session, limit, after)
    return Page(items=items, next=following)


@router.post(
    "/{token_id}/revoke",
    operation_id="revokeToken",
    summary="Revoke a token",
    description="It is refused from the next request on, and so are those that replaced it. "
    "Repeating it changes nothing.",
    responses=answers(200, {**examples.TOKEN, "revoked_at": examples.AT}, "Revoked.", "not-found"),
)
async def revoked(ctx: Ctx, who: Admin, token_id: UUID) -> TokenView:
    async with ctx.database.write() as session:
        return view(await revoke(session, ctx.database, who, token_id))
