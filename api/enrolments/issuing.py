"""Issuing a one-time code."""

from __future__ import annotations

import hmac
from datetime import timedelta
from hashlib import sha256
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.clients import service as clients
from api.context import Context
from api.db.base import uuid7
from api.db.enrolment_models import Enrolment
from api.enrolments import repository
from api.enrolments.messages import DAY_S, EnrolmentMade, NewEnrolment, view
from api.problems import ClientNameTaken, InvalidRequest, NotFound
from core.wire.credentials import new_code


def mac_of_code(code: str, pepper: bytes) -> bytes:
    """What is stored of a code."""
    return hmac.new(pepper, b"enrolment:" + code.encode(), sha256).digest()


async def create(
    ctx: Context, session: AsyncSession, who: Principal, body: NewEnrolment
) -> EnrolmentMade:
    """A code for one site. What would keep the client from being made is said now, not when the
    site's people wait for it.
    """
    if body.approval == "automatic" and not ctx.settings.automatic_enrolment:
        raise InvalidRequest(
            "this coordinator's policy lets nobody in without an administrator's look",
            field="approval",
            mend="Leave it out, or set FHV_AUTOMATIC_ENROLMENT=true on the coordinator.",
        )
    now = await ctx.database.now(session)
    client_id: UUID | None = None
    if body.client is not None:
        name = body.client.name
        async with session.begin_nested() as trial:  # all its checks, nothing of it kept
            await clients.create(session, body.client)
            await trial.rollback()
    else:
        name = str(body.existing)
        client_id = await _may_have_a_token(session, name)
    for gone in await repository.close_expired(session, name, now):
        await audit.record(session, "enrolment-expired", None, enrolment=str(gone), name=name)
    code = new_code()
    row = Enrolment(
        id=uuid7(),
        code_mac=mac_of_code(code, ctx.settings.pepper),
        name=name,
        wanted=None if body.client is None else body.client.model_dump(mode="json"),
        client_id=client_id,
        automatic=body.approval == "automatic",
        token_s=body.token_days * DAY_S,
        expires_at=now + timedelta(seconds=body.expires_in_s),
    )
    if not await repository.add(session, row):
        raise ClientNameTaken(
            f"a code for {name!r} is out already",
            field="client.name" if body.client else "existing",
            mend="Refuse that enrolment first (POST /v1/enrolments/{id}/refuse).",
        )
    stored = await repository.one(session, row.id)
    if stored is None:
        raise NotFound("the enrolment vanished")
    await audit.record(
        session,
        "enrolment-created",
        who,
        client_id=client_id,
        enrolment=str(row.id),
        name=name,
        automatic=row.automatic,
    )
    return EnrolmentMade(code=code, **view(stored, now).model_dump())


async def _may_have_a_token(session: AsyncSession, name: str) -> UUID:
    client = await repository.client(session, name)
    if client is None:
        raise InvalidRequest(f"there is no client {name!r}", field="existing")
    if client.managed:
        raise InvalidRequest(f"{name!r} is managed: it has no token", field="existing")
    if client.revoked_at is not None:
        raise InvalidRequest(f"{name!r} was revoked, for good", field="existing")
    return client.id
