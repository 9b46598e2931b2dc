"""SQL of runs and of who takes part in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.models import Client
from api.db.oversight_models import Consent, JoinRequest
from api.db.run_models import JoinMember, Round, Run, RunClient
from api.pages import cut


async def add(session: AsyncSession, run: Run, clients: Sequence[Client]) -> bool:
    """False if the name is taken."""
    made = await session.execute(
        insert(Run)
        .values(
            id=run.id,
            name=run.name,
            state="draft",
            why="",
            spec=run.spec,
            spec_digest=run.spec_digest,
            epsilon_planned=run.epsilon_planned,
        )
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(Run.id)
    )
    if made.first() is None:
        return False
    session.add_all(
        RunClient(run_id=run.id, client_id=client.id, position=position)
        for position, client in enumerate(clients)
    )
    await session.flush()
    return True


@dataclass(frozen=True)
class Seat:
    """Who takes part, and whether anything keeps it from that."""

    client: Client
    place: RunClient
    consent: str
    consent_why: str


async def seats(session: AsyncSession, run_id: UUID) -> list[Seat]:
    """In the fixed order in which sums are taken."""
    query = (
        select(Client, RunClient, Consent.state, Consent.why)
        .join(RunClient, RunClient.client_id == Client.id)
        .join(
            Consent,
            (Consent.run_id == RunClient.run_id) & (Consent.client_id == RunClient.client_id),
        )
        .where(RunClient.run_id == run_id)
        .order_by(RunClient.position)
        .execution_options(populate_existing=True)
    )
    return [Seat(*row) for row in await session.execute(query)]


async def one(session: AsyncSession, run_id: UUID) -> Run | None:
    return await session.get(Run, run_id)


async def by_name(session: AsyncSession, name: str) -> Run | None:
    found: Run | None = await session.scalar(select(Run).where(Run.name == name))
    return found


async def locked(session: AsyncSession, run_id: UUID, *, skip: bool = False) -> Run | None:
    """The run's row under FOR NO KEY UPDATE; with ``skip``, None if somebody else holds it."""
    found: Run | None = await session.scalar(
        select(Run)
        .where(Run.id == run_id)
        .with_for_update(key_share=True, skip_locked=skip)
        .execution_options(populate_existing=True)
    )
    return found


async def clients_of(
    session: AsyncSession, run_id: UUID, up_to_round: int | None = None
) -> Sequence[Client]:
    """In the fixed order in which sums are taken: founding clients, then those of joins (up to
    that of a round).
    """
    query = (
        select(Client)
        .join(RunClient, RunClient.client_id == Client.id)
        .where(RunClient.run_id == run_id)
        .order_by(RunClient.position)
    )
    if up_to_round is not None:
        joined = exists().where(
            JoinMember.run_id == run_id,
            JoinMember.client_id == RunClient.client_id,
            JoinMember.round_number <= up_to_round,
        )
        query = query.where(or_(RunClient.founding, joined))
    return (await session.scalars(query)).all()


async def position(session: AsyncSession, run_id: UUID, client_id: UUID) -> int | None:
    """The client's place in the order of the run's sums; None if it takes no part."""
    found: int | None = await session.scalar(
        select(RunClient.position).where(
            RunClient.run_id == run_id, RunClient.client_id == client_id
        )
    )
    return found


async def takes_part(session: AsyncSession, run_id: UUID, client_id: UUID) -> bool:
    """It has a seat in the run, or waits for one."""
    return (
        await session.get(RunClient, (run_id, client_id)) is not None
        or await session.get(JoinRequest, (run_id, client_id)) is not None
    )


async def progress(
    session: AsyncSession, run_id: UUID, last_round: int
) -> tuple[int | None, int, int]:
    """(number of the newest round, how many of the plan's are published, how many joins)."""
    published, join = Round.state == "published", Round.number > last_round
    query = select(
        func.max(Round.number),
        func.count().filter(published, ~join),
        func.count().filter(published, join),
    ).where(Round.run_id == run_id)
    newest, planned, joins = (await session.execute(query)).one()
    return newest, planned, joins


async def page(
    session: AsyncSession, limit: int, after: UUID | None, client_id: UUID | None
) -> Sequence[Run]:
    """All runs, or those in which one client takes part."""
    query = select(Run)
    if client_id is not None:
        query = query.join(RunClient, RunClient.run_id == Run.id).where(
            RunClient.client_id == client_id
        )
    return (await session.scalars(cut(query, Run.id, limit, after))).all()
