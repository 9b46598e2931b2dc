"""The coordinator's signing keys: one signs, older ones go on verifying.

A private key lies in the database sealed under the token pepper (``api.sealing``). The first one is
made when the first receipt is.
"""

from __future__ import annotations

import time
from datetime import datetime

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit, sealing
from api.db.engine import Database
from api.db.synthesis_models import SigningKey as KeyRow
from api.problems import NotFound, SigningKeySealed
from core.receipts.signing import SigningKey, key_id

_PURPOSE = "signing key"
_KEPT_S = 15.0  # so long a replica may go on with a key that was retired elsewhere


class KeyView(BaseModel):
    id: str
    algorithm: str = "ed25519"
    public: str = Field(description="32 bytes, in hexadecimal digits.")
    created_at: datetime
    retired_at: datetime | None = Field(description="Since then it only verifies.")
    revoked_at: datetime | None = Field(description="Since then nothing that it signed is valid.")


class KeysView(BaseModel):
    items: list[KeyView]


class Keyring:
    """The active key of one process, read again now and then."""

    def __init__(self, database: Database, pepper: bytes) -> None:
        self._database, self._pepper = database, pepper
        self._kept: tuple[float, SigningKey] | None = None

    async def active(self) -> SigningKey:
        if self._kept is not None and time.monotonic() < self._kept[0]:
            return self._kept[1]
        async with self._database.read() as session:
            row = await _active(session)
        if row is None:
            async with self._database.write() as session:
                row = await create(session, None, self._pepper)
        key = _opened(row, self._pepper)
        self._kept = (time.monotonic() + _KEPT_S, key)
        return key


async def create(session: AsyncSession, who: audit.Actor, pepper: bytes) -> KeyRow:
    """A new active key; the present one if somebody else has just made it."""
    made = SigningKey.new()
    name = key_id(made.public)
    values = {"id": name, "public": made.public, "sealed": _sealed(made, pepper)}
    added = await session.execute(
        insert(KeyRow).values(values).on_conflict_do_nothing().returning(KeyRow.id)
    )
    if added.first() is not None:
        await audit.record(session, "signing-key-created", who, key=name)
    found = await _active(session)
    if found is None:
        raise RuntimeError("there is no active signing key, and none could be made")
    return found


async def rotate(
    session: AsyncSession, database: Database, who: audit.Actor, pepper: bytes
) -> KeyRow:
    """The active key is retired and a new one signs from now on."""
    present = await _active(session, lock=True)
    if present is not None:
        present.retired_at = await database.now(session)
        await session.flush()
        await audit.record(session, "signing-key-retired", who, key=present.id)
    return await create(session, who, pepper)


async def revoke(
    session: AsyncSession, database: Database, who: audit.Actor, pepper: bytes, name: str
) -> None:
    """For a key that others may have: nothing that it signed is valid any more. Raises
    ``NotFound``. Another key takes the place of an active one.
    """
    row = await session.get(KeyRow, name, with_for_update=True)
    if row is None:
        raise NotFound(f"there is no signing key {name!r}", field="key_id")
    if row.revoked_at is not None:
        return
    now = await database.now(session)
    was_active = row.retired_at is None
    row.revoked_at = now
    if was_active:
        row.retired_at = now
    await session.flush()
    await audit.record(session, "signing-key-revoked", who, key=name)
    if was_active:
        await create(session, who, pepper)


async def views(session: AsyncSession) -> list[KeyView]:
    """All keys, oldest first."""
    rows = await session.scalars(select(KeyRow).order_by(KeyRow.created_at))
    return [
        KeyView(
            id=row.id,
            public=row.public.hex(),
            created_at=row.created_at,
            retired_at=row.retired_at,
            revoked_at=row.revoked_at,
        )
        for row in rows
    ]


async def _active(session: AsyncSession, *, lock: bool = False) -> KeyRow | None:
    query = select(KeyRow).where(KeyRow.retired_at.is_(None))
    found: KeyRow | None = await session.scalar(query.with_for_update() if lock else query)
    return found


def _sealed(key: SigningKey, pepper: bytes) -> bytes:
    return sealing.seal(key.seed, pepper=pepper, purpose=_PURPOSE, row=key_id(key.public))


def _opened(row: KeyRow, pepper: bytes) -> SigningKey:
    try:
        seed = sealing.opened(row.sealed, pepper=pepper, purpose=_PURPOSE, row=row.id)
    except sealing.OtherPepper as error:
        raise SigningKeySealed(
            f"the signing key {row.id} was sealed under another FHV_TOKEN_PEPPER",
            mend="Set the former pepper again, or run 'fedhypevae keys rotate'.",
        ) from error
    return SigningKey(seed)
