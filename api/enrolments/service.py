"""Enrolment by a one-time code.

An administrator says who may come and gets a code (``issuing``); the site redeems it with a token
that it has made itself (``redemption``); the administrator compares a fingerprint with the site's
people and approves. Until then the token opens nothing. Every step can be repeated: what is lost
with an answer is not lost.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api import audit, tokens
from api.auth import Principal
from api.clients import repository as clients
from api.clients import service as enrolled
from api.clients.service import NewClient
from api.context import Context
from api.db.enrolment_models import Enrolment
from api.enrolments import repository
from api.enrolments.messages import Approval, EnrolmentView, state_of, view
from api.enrolments.repository import State
from api.problems import Conflict, InvalidRequest, NotFound


async def approve(
    ctx: Context, session: AsyncSession, who: Principal, enrolment_id: UUID, body: Approval
) -> EnrolmentView:
    """Let the site in that has redeemed the code. Repeating it changes nothing."""
    row = await _locked(session, enrolment_id)
    now = await ctx.database.now(session)
    if body.fingerprint is not None and _plain(body.fingerprint) != _plain(row.fingerprint or ""):
        raise InvalidRequest(
            "the token that was redeemed has another fingerprint: it is not the one that those who "
            "read this out have made",
            field="fingerprint",
            mend="If it was read and typed correctly, refuse the enrolment: somebody else has the "
            "code.",
        )
    state = state_of(row, now)
    if state == "approved":
        return view(row, now)
    if state != "waiting":
        raise Conflict(
            f"the enrolment is {state}",
            mend="A site must redeem the code first." if state == "open" else "Issue a new code.",
        )
    await let_in(ctx, session, row, who)
    return view(row, now)


def _plain(text: str) -> str:
    return text.upper().replace("-", "").replace(" ", "")


async def let_in(
    ctx: Context, session: AsyncSession, row: Enrolment, who: Principal | None
) -> None:
    """The client, if it is new, and the token that its site holds already."""
    now = await ctx.database.now(session)
    if row.client_id is None:
        client = await enrolled.create(session, NewClient.model_validate(row.wanted))
        await audit.record(
            session, "client-created", who, client_id=client.id, name=client.name, managed=False
        )
        row.client_id = client.id
    else:
        known = await clients.locked(session, row.client_id)
        if known is None or known.revoked_at is not None:
            raise Conflict(f"{row.name!r} was revoked, for good", mend="Refuse the enrolment.")
        await clients.revoke_tokens(session, row.client_id, now)
    if row.token_mac is None:
        raise NotFound("the enrolment has no token")
    token = await tokens.add(
        session,
        row.token_mac,
        scope="client",
        label=row.name,
        client_id=row.client_id,
        expires_at=now + timedelta(seconds=row.token_s),
        renewal_s=row.token_s,
    )
    row.decision, row.decided_at = "approved", now
    await session.flush()
    await audit.record(
        session,
        "enrolment-approved",
        who,
        client_id=row.client_id,
        enrolment=str(row.id),
        token=str(token.id),
    )


async def refuse(
    ctx: Context, session: AsyncSession, who: Principal, enrolment_id: UUID, why: str
) -> EnrolmentView:
    """Nobody comes in by this code, whether it was redeemed or not. Repeating changes nothing."""
    row = await _locked(session, enrolment_id)
    now = await ctx.database.now(session)
    state = state_of(row, now)
    if state == "approved":
        raise Conflict(
            "the enrolment was approved", mend="Revoke the client (POST /v1/clients/{id}/revoke)."
        )
    if row.decision is not None:
        return view(row, now)
    row.why, row.decided_at = why, now
    if row.redeemed_at is None:
        row.decision = "withdrawn"
        await audit.record(
            session, "enrolment-withdrawn", who, enrolment=str(row.id), name=row.name, why=why
        )
    else:
        row.decision = "refused"
        await audit.record(
            session, "enrolment-refused", who, enrolment=str(row.id), name=row.name, why=why
        )
    await session.flush()
    return view(row, now)


async def _locked(session: AsyncSession, enrolment_id: UUID) -> Enrolment:
    row = await repository.locked(session, enrolment_id)
    if row is None:
        raise NotFound(f"there is no enrolment {enrolment_id}")
    return row


async def one(ctx: Context, session: AsyncSession, enrolment_id: UUID) -> EnrolmentView:
    row = await repository.one(session, enrolment_id)
    if row is None:
        raise NotFound(f"there is no enrolment {enrolment_id}")
    return view(row, await ctx.database.now(session))


async def some(
    ctx: Context,
    session: AsyncSession,
    limit: int,
    after: UUID | None,
    state: State | None = None,
) -> tuple[list[EnrolmentView], bool]:
    """A page of views, oldest first, and whether more follow."""
    now = await ctx.database.now(session)
    rows = await repository.page(session, limit, after, state, now)
    return [view(row, now) for row in rows[:limit]], len(rows) > limit
