"""SQL of clients and their accounts."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.db.models import Account, Client
from api.pages import cut


async def account(session: AsyncSession, *, site: str, population: str, unit: str) -> Account:
    """The one account of this (site, population), made with ``unit`` if there was none.

    The caller compares units: of two that enrol at the same moment, one finds the other's.
    """
    await session.execute(
        insert(Account)
        .values(id=uuid7(), site=site, population=population, unit=unit)
        .on_conflict_do_nothing()
    )
    found = await session.execute(
        select(Account).where(Account.site == site, Account.population == population)
    )
    return found.scalar_one()


async def add(session: AsyncSession, client: Client) -> bool:
    """False if the name is taken (also by a request that commits at the same moment)."""
    made = await session.execute(
        insert(Client)
        .values(
            id=client.id,
            name=client.name,
            space_id=client.space_id,
            account_id=client.account_id,
            managed=client.managed,
            budget_epsilon=client.budget_epsilon,
            budget_delta=client.budget_delta,
        )
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(Client.id)
    )
    return made.first() is not None


async def one(session: AsyncSession, client_id: UUID) -> Client | None:
    return await session.get(Client, client_id)


async def by_names(session: AsyncSession, names: Sequence[str]) -> dict[str, Client]:
    rows = await session.scalars(select(Client).where(Client.name.in_(names)))
    return {row.name: row for row in rows}


async def page(session: AsyncSession, limit: int, after: UUID | None) -> Sequence[Client]:
    return (await session.scalars(cut(select(Client), Client.id, limit, after))).all()
