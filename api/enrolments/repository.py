"""SQL of enrolments."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.enrolment_models import Enrolment
from api.db.models import Client, Token
from api.pages import cut

State = Literal["open", "waiting", "approved", "refused", "withdrawn", "expired"]


async def add(session: AsyncSession, new: Enrolment) -> bool:
    """False if this name has an open enrolment (also one that commits at the same moment)."""
    made = await session.execute(
        insert(Enrolment)
        .values(
            id=new.id,
            code_mac=new.code_mac,
            name=new.name,
            wanted=new.wanted,
            client_id=new.client_id,
            automatic=new.automatic,
            token_s=new.token_s,
            expires_at=new.expires_at,
            agent="",
            address="",
            why="",
        )
        .on_conflict_do_nothing(index_elements=["name"], index_where=Enrolment.decision.is_(None))
        .returning(Enrolment.id)
    )
    return made.first() is not None


async def close_expired(session: AsyncSession, name: str, now: datetime) -> Sequence[UUID]:
    """A code that nobody has used in time no longer keeps its name from another."""
    found = await session.scalars(
        update(Enrolment)
        .where(
            Enrolment.name == name,
            Enrolment.decision.is_(None),
            Enrolment.redeemed_at.is_(None),
            Enrolment.expires_at <= now,
        )
        .values(decision="expired", decided_at=now)
        .returning(Enrolment.id)
    )
    return found.all()


async def locked(session: AsyncSession, enrolment_id: UUID) -> Enrolment | None:
    return await session.get(
        Enrolment, enrolment_id, with_for_update={"key_share": True}, populate_existing=True
    )


async def of_code(session: AsyncSession, code_mac: bytes) -> Enrolment | None:
    """Locked: of two that redeem one code, one is the second."""
    found: Enrolment | None = await session.scalar(
        select(Enrolment).where(Enrolment.code_mac == code_mac).with_for_update(key_share=True)
    )
    return found


async def one(session: AsyncSession, enrolment_id: UUID) -> Enrolment | None:
    return await session.get(Enrolment, enrolment_id)


async def token_is_known(session: AsyncSession, mac: bytes) -> bool:
    """Is it a token's, or what another enrolment waits with?"""
    tokens = select(Token.id).where(Token.mac == mac)
    waiting = select(Enrolment.id).where(Enrolment.token_mac == mac)
    return (await session.execute(tokens.union_all(waiting).limit(1))).first() is not None


async def client(session: AsyncSession, name: str) -> Client | None:
    found: Client | None = await session.scalar(select(Client).where(Client.name == name))
    return found


async def page(
    session: AsyncSession, limit: int, after: UUID | None, state: State | None, now: datetime
) -> Sequence[Enrolment]:
    query = select(Enrolment)
    undecided, unused = Enrolment.decision.is_(None), Enrolment.redeemed_at.is_(None)
    if state == "open":
        query = query.where(undecided, unused, Enrolment.expires_at > now)
    elif state == "waiting":
        query = query.where(undecided, ~unused)
    elif state == "expired":
        late = undecided & unused & (Enrolment.expires_at <= now)
        query = query.where((Enrolment.decision == "expired") | late)
    elif state is not None:
        query = query.where(Enrolment.decision == state)
    return (await session.scalars(cut(query, Enrolment.id, limit, after))).all()
