"""``Idempotency-Key`` on POSTs that create: a repeated request gets the first one's answer.

The key's row is inserted before anything else in the request's transaction. A second request with
the same key waits on that row until the first has committed, and then replays its answer.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal
from api.db.models import IdempotencyKey
from api.problems import IdempotencyKeyReused
from core.federation.plan import digest_of

REPLAYED_HEADER = "Idempotency-Replayed"
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="Repeat a request with the same key: nothing is created twice.",
    ),
]


async def replay(
    session: AsyncSession, who: Principal, key: str | None, operation: str, body: BaseModel
) -> dict[str, Any] | None:
    """The stored answer of this key, or None: then act, and call ``remember``."""
    if key is None:
        return None
    digest = _digest(operation, body)
    made = await session.execute(
        insert(IdempotencyKey)
        .values(token_id=who.token_id, key=key, request_digest=digest)
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    )
    if made.first() is not None:
        return None
    return await _stored(session, who, key, digest)


async def peek(
    session: AsyncSession, who: Principal, key: str | None, operation: str, body: BaseModel
) -> dict[str, Any] | None:
    """Like ``replay`` but only looks: for requests that compute for seconds before they write."""
    if key is None or await session.get(IdempotencyKey, (who.token_id, key)) is None:
        return None
    return await _stored(session, who, key, _digest(operation, body))


def _digest(operation: str, body: BaseModel) -> str:
    return digest_of({"operation": operation, "body": body.model_dump(mode="json")})


async def _stored(session: AsyncSession, who: Principal, key: str, digest: str) -> dict[str, Any]:
    row = await session.get(IdempotencyKey, (who.token_id, key))
    if row is None or row.request_digest != digest or row.response is None:
        raise IdempotencyKeyReused(
            "this Idempotency-Key was sent with another request",
            field="Idempotency-Key",
            mend="Choose a new key for a new request.",
        )
    return row.response


async def remember(
    session: AsyncSession, who: Principal, key: str | None, response: dict[str, Any]
) -> None:
    """Store the answer for replays. Secrets must have been taken out of it."""
    if key is None:
        return
    await session.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.token_id == who.token_id, IdempotencyKey.key == key)
        .values(response=response)
    )
