"""Redeeming a code: the site's side, which has no token yet."""

from __future__ import annotations

import hmac
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from api import audit, auth
from api.clients import repository as clients
from api.clients import service as enrolled
from api.context import Context
from api.db.enrolment_models import Enrolment
from api.enrolments import repository
from api.enrolments.issuing import mac_of_code
from api.enrolments.messages import Redeemed, Redemption, state_of
from api.enrolments.service import let_in
from api.own_token import checked
from api.problems import CodeUnknown, CodeUsed, EnrolmentClosed, InvalidRequest
from api.webhooks import kinds as webhooks
from core.wire.credentials import BadCode, fingerprint, new_token, read_code

_UNKNOWN = "no enrolment has this code"
_ASK = "Check the letters, or ask the coordinator's administrator for a new code."


async def redeem(ctx: Context, session: AsyncSession, body: Redemption, address: str) -> Redeemed:
    """Use a code, or ask again with the same token what has become of it."""
    pepper = ctx.settings.pepper
    row = await _of_code(ctx, session, body.code, address)
    now = await ctx.database.now(session)
    token = None if body.token is None else checked(body.token, "client")
    if row.token_mac is not None:
        if token is None or not hmac.compare_digest(row.token_mac, auth.mac_of(token, pepper)):
            ctx.guard.failed(address, row.code_mac)
            raise CodeUsed(
                "this code was redeemed with another token",
                mend="If that was not your site, tell the coordinator's administrator at once: "
                "somebody else has your code. Otherwise ask for a new code.",
            )
        return await _redeemed(session, row, now, None)
    state = state_of(row, now)
    if state != "open":
        raise EnrolmentClosed(f"this code is {state}", mend="Ask for a new code.")
    secret = new_token("client") if token is None else token
    mac = auth.mac_of(secret, pepper)
    if await repository.token_is_known(session, mac):
        raise InvalidRequest(
            "this token is not new", field="token", mend="Make it of 32 fresh random bytes."
        )
    row.redeemed_at, row.token_mac, row.fingerprint = now, mac, fingerprint(secret)
    row.agent, row.address = body.agent, address[:64]
    await session.flush()
    await audit.record(
        session,
        "enrolment-redeemed",
        None,
        client_id=row.client_id,
        enrolment=str(row.id),
        name=row.name,
        fingerprint=row.fingerprint,
    )
    if row.automatic and ctx.settings.automatic_enrolment:
        await let_in(ctx, session, row, None)
    else:
        await webhooks.tell(
            session, "client-enrolment-waiting", see="/v1/enrolments", enrolment_id=row.id
        )
    return await _redeemed(session, row, now, secret if token is None else None)


async def _of_code(ctx: Context, session: AsyncSession, text: str, address: str) -> Enrolment:
    """The enrolment of a code; one that was mistyped does not count as a guess."""
    try:
        code = read_code(text)
    except BadCode as wrong:
        raise CodeUnknown(f"{_UNKNOWN}: {wrong}", field="code", mend=_ASK) from None
    mac = mac_of_code(code, ctx.settings.pepper)
    auth.admit(ctx, address, mac)
    row = await repository.of_code(session, mac)
    if row is None:
        auth.failed(ctx, address, mac, "code")
        raise CodeUnknown(_UNKNOWN, field="code", mend=_ASK)
    return row


async def _redeemed(
    session: AsyncSession, row: Enrolment, now: datetime, secret: str | None
) -> Redeemed:
    client = None
    if row.decision == "approved" and row.client_id is not None:
        found = await clients.one(session, row.client_id)
        client = None if found is None else enrolled.view(found)
    expires = None if row.decided_at is None else row.decided_at + timedelta(seconds=row.token_s)
    return Redeemed(
        id=row.id,
        state=state_of(row, now),
        why=row.why,
        fingerprint=row.fingerprint or "",
        client=client,
        token=secret,
        token_expires_at=expires if row.decision == "approved" else None,
    )
