"""SQL of clients and their accounts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.db.models import Account, Client, Token
from api.db.run_models import LIVE_ROUND, Round, RunClient
from api.pages import cut

_ENROLMENT = 0x464856_0001  # advisory lock; others have numbers of their own


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
            domain=client.domain,
            managed=client.managed,
            budget_epsilon=client.budget_epsilon,
            budget_delta=client.budget_delta,
        )
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(Client.id)
    )
    return made.first() is not None


async def is_a_domain(session: AsyncSession, name: str) -> bool:
    """Enrolments come one by one from here to the end of the transaction."""
    await session.execute(select(func.pg_advisory_xact_lock(_ENROLMENT)))
    return bool(await session.scalar(select(exists().where(Client.domain == name))))


async def is_a_name(session: AsyncSession, label: str) -> bool:
    return bool(await session.scalar(select(exists().where(Client.name == label))))


async def one(session: AsyncSession, client_id: UUID) -> Client | None:
    return await session.get(Client, client_id)


async def locked(session: AsyncSession, client_id: UUID) -> Client | None:
    """Under FOR NO KEY UPDATE: rows that refer to the client may still be written."""
    found: Client | None = await session.scalar(
        select(Client)
        .where(Client.id == client_id)
        .with_for_update(key_share=True, of=Client)
        .execution_options(populate_existing=True)
    )
    return found


async def revoke_tokens(session: AsyncSession, client_id: UUID, at: datetime) -> None:
    await session.execute(
        update(Token)
        .where(Token.client_id == client_id, Token.revoked_at.is_(None))
        .values(revoked_at=at)
    )


async def live_runs(session: AsyncSession, client_id: UUID) -> Sequence[UUID]:
    """Runs with a round under way in which the client has a seat, in the order of their ids."""
    query = (
        select(Round.run_id)
        .join(RunClient, RunClient.run_id == Round.run_id)
        .where(RunClient.client_id == client_id, text(f"rounds.{LIVE_ROUND}"))
        .order_by(Round.run_id)
    )
    return (await session.scalars(query)).all()


async def by_names(session: AsyncSession, names: Sequence[str]) -> dict[str, Client]:
    rows = await session.scalars(select(Client).where(Client.name.in_(names)))
    return {row.name: row for row in rows}


async def page(session: AsyncSession, limit: int, after: UUID | None) -> Sequence[Client]:
    return (await session.scalars(cut(select(Client), Client.id, limit, after))).all()
