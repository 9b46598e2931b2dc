"""SQL of joins."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import exists, func, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.models import Client
from api.db.oversight_models import JoinRequest
from api.db.run_models import LIVE_ROUND, JoinMember, Round, Run, RunClient


async def add(session: AsyncSession, run: Run, number: int, members: Sequence[Client]) -> Round:
    """The join round in state ``draft`` and its members, behind all clients that the run has."""
    run_id = run.id
    row = Round(run_id=run_id, number=number, state="draft")
    session.add(row)
    known = set(
        await session.scalars(select(RunClient.client_id).where(RunClient.run_id == run_id))
    )
    last = await session.scalar(
        select(func.max(RunClient.position)).where(RunClient.run_id == run_id)
    )
    new = [client for client in members if client.id not in known]
    session.add_all(
        RunClient(run_id=run_id, client_id=client.id, position=position, founding=False)
        for position, client in enumerate(new, start=(-1 if last is None else last) + 1)
    )
    await session.flush()
    session.add_all(
        JoinMember(run_id=run_id, round_number=number, client_id=client.id) for client in members
    )
    await session.flush()
    await session.refresh(row)
    return row


async def founding(session: AsyncSession, run_id: UUID) -> set[UUID]:
    query = select(RunClient.client_id).where(RunClient.run_id == run_id, RunClient.founding)
    return set(await session.scalars(query))


async def enqueue(
    session: AsyncSession, run_id: UUID, members: Sequence[Client]
) -> list[tuple[JoinRequest, Client]]:
    """One request a client; who waits already keeps its place, who was dropped waits again."""
    values = [{"run_id": run_id, "client_id": client.id, "why": ""} for client in members]
    await session.execute(
        insert(JoinRequest)
        .values(values)
        .on_conflict_do_update(
            index_elements=["run_id", "client_id"], set_={"settled_at": None, "why": ""}
        )
    )
    waiting = await requests(session, run_id)
    asked = {client.id for client in members}
    return [(request, client) for request, client in waiting if client.id in asked]


async def requests(
    session: AsyncSession, run_id: UUID, client_id: UUID | None = None
) -> list[tuple[JoinRequest, Client]]:
    """Requests without a round: those that wait and those that were dropped, oldest first."""
    query = (
        select(JoinRequest, Client)
        .join(Client, Client.id == JoinRequest.client_id)
        .where(
            JoinRequest.run_id == run_id,
            or_(JoinRequest.settled_at.is_(None), JoinRequest.why != ""),
        )
        .order_by(JoinRequest.created_at, Client.id)
        .execution_options(populate_existing=True)
    )
    if client_id is not None:
        query = query.where(JoinRequest.client_id == client_id)
    return [(request, client) for request, client in await session.execute(query)]


async def due(session: AsyncSession) -> Sequence[UUID]:
    """Runs that have ended, have no round under way, and for which somebody waits."""
    live = exists().where(Round.run_id == Run.id, text(f"rounds.{LIVE_ROUND}"))
    query = (
        select(JoinRequest.run_id)
        .join(Run, Run.id == JoinRequest.run_id)
        .where(
            JoinRequest.settled_at.is_(None),
            Run.state.in_(("completed", "failed", "cancelled")),
            ~live,
        )
        .distinct()
    )
    return (await session.scalars(query)).all()


async def page(
    session: AsyncSession, run_id: UUID, limit: int, after: int | None, client_id: UUID | None
) -> Sequence[Round]:
    """Join rounds in order; with ``client_id`` those of which it is a member."""
    member = exists().where(
        JoinMember.run_id == Round.run_id, JoinMember.round_number == Round.number
    )
    if client_id is not None:
        member = member.where(JoinMember.client_id == client_id)
    query = select(Round).where(Round.run_id == run_id, member)
    if after is not None:
        query = query.where(Round.number > after)
    return (await session.scalars(query.order_by(Round.number).limit(limit + 1))).all()


async def members(session: AsyncSession, run_id: UUID, number: int) -> Sequence[UUID]:
    query = select(JoinMember.client_id).where(
        JoinMember.run_id == run_id, JoinMember.round_number == number
    )
    return (await session.scalars(query)).all()
