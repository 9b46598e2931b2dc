"""The caller's own token: what it is, and its replacement without a moment in which none works.

The holder makes the new token and keeps it before it asks. A request whose answer is lost is sent
again and gets the same answer; the old token goes on working for an overlap, so that processes
which still hold it have time to read the new one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit, examples, tokens
from api.auth import Anyone, Principal, mac_of
from api.context import Context, Ctx
from api.db.models import Token
from api.openapi import answers, example
from api.problems import InvalidRequest, NotFound, TokenReplaced, Unauthenticated
from api.tokens import TokenView
from core.wire.credentials import is_token

router = APIRouter(prefix="/v1/tokens/me", tags=["tokens"])

_LONGEST_OVERLAP_S = 7 * 86_400.0
_DEFAULT_OVERLAP_S = 3_600.0


class Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    token: str | None = Field(
        default=None,
        max_length=200,
        description="The new token, made by its holder: fhv_<scope>_ and 43 characters of "
        "base64url (256 random bits). Without it the coordinator makes one; an answer that is "
        "then lost is lost.",
    )
    overlap_s: float = Field(
        default=_DEFAULT_OVERLAP_S,
        ge=0,
        le=_LONGEST_OVERLAP_S,
        description="So long the old token is still accepted.",
    )


class OwnToken(TokenView):
    lifetime_s: float | None = Field(description="From its making to its end; null: no end.")
    expires_in_s: float | None = Field(description="By the coordinator's clock; null: no end.")


class Rotated(TokenView):
    token: str | None = Field(description="Only where the coordinator has made it; shown once.")


def checked(token: str, scope: str, field: str = "token") -> str:
    """A token that its holder has made. Raises ``InvalidRequest``; the text is in no error."""
    if not is_token(token, scope):
        raise InvalidRequest(
            f"a token of scope {scope!r} is fhv_{scope}_ and 43 characters of base64url",
            field=field,
            mend="Make it of 32 random bytes, or leave it out.",
        )
    return token


async def rotate(ctx: Context, session: AsyncSession, who: Principal, body: Rotation) -> Rotated:
    """Replace the caller's token. A renewable one (``renewal_s``) begins its life anew, any other
    ends when it would have ended: rotation is no way to stay longer than was granted.
    """
    pepper = ctx.settings.pepper
    old = await session.get(Token, who.token_id, with_for_update={"key_share": True})
    if old is None:
        raise NotFound("the token vanished")
    now = await ctx.database.now(session)
    if old.revoked_at is not None:  # by somebody who held the row's lock while we waited
        raise Unauthenticated("the bearer token was revoked")
    new = None if body.token is None else checked(body.token, old.scope)
    if old.replaced_by is not None:
        again = await session.get(Token, old.replaced_by)
        if new is None or again is None or again.mac != mac_of(new, pepper):
            raise TokenReplaced(
                "this token was replaced by another one already",
                mend="Use the new token. If you did not make it, tell the administrator at once: "
                "somebody else has used this one.",
            )
        return Rotated(token=None, **tokens.view(again).model_dump())
    expires_at = old.expires_at
    if old.renewal_s is not None:
        expires_at = now + timedelta(seconds=old.renewal_s)
    row, secret = await tokens.issue(
        session,
        pepper,
        scope=old.scope,
        label=old.label,
        client_id=old.client_id,
        expires_at=expires_at,
        renewal_s=old.renewal_s,
        secret=new,
    )
    old.replaced_by = row.id
    ends = now + timedelta(seconds=body.overlap_s)
    old.expires_at = ends if old.expires_at is None else min(old.expires_at, ends)
    await audit.record(
        session,
        "token-replaced",
        who,
        client_id=old.client_id,
        token=str(old.id),
        by=str(row.id),
        until=old.expires_at.isoformat(),
    )
    return Rotated(token=secret if new is None else None, **tokens.view(row).model_dump())


@router.get(
    "",
    operation_id="getOwnToken",
    summary="The token of this request",
    description="Its scope, and until when it is accepted.",
    responses=answers(200, examples.OWN_TOKEN, "The token, without its text."),
)
async def mine(ctx: Ctx, who: Anyone) -> OwnToken:
    async with ctx.database.read() as session:
        row = await session.scalar(select(Token).where(Token.id == who.token_id))
        now = await ctx.database.now(session)
    if row is None:
        raise NotFound("the token vanished")
    ends = row.expires_at
    return OwnToken(
        lifetime_s=None if ends is None else (ends - row.created_at).total_seconds(),
        expires_in_s=None if ends is None else (ends - now).total_seconds(),
        **tokens.view(row).model_dump(),
    )


@router.post(
    "/rotate",
    operation_id="rotateOwnToken",
    summary="Replace the token of this request",
    description="The old token works on for `overlap_s`. Send a token that you have made and kept "
    "first: then nothing is lost with an answer, and repeating the request changes nothing. A "
    "token that is renewable (those of enrolled sites are) begins its life anew; any other ends "
    "when it would have ended.",
    status_code=201,
    responses=answers(201, examples.TOKEN_ROTATED, "Replaced.", "token-replaced"),
)
async def rotated(
    ctx: Ctx, who: Anyone, body: Annotated[Rotation, example(examples.TOKEN_ROTATION)]
) -> Rotated:
    async with ctx.database.write() as session:
        return await rotate(ctx, session, who, body)
