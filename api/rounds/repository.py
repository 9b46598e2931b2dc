"""SQL of rounds, of the attempts in them, and of the models that they publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, exists, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from api.db.models import Client, StoredObject
from api.db.oversight_models import Consent
from api.db.run_models import (
    LIVE_ROUND,
    Job,
    JoinMember,
    Round,
    Run,
    RunClient,
    Update,
    WorkItem,
)


async def newest(session: AsyncSession, run_id: UUID, *, lock: bool = False) -> Round | None:
    """The round with the highest number; with ``lock`` under FOR NO KEY UPDATE."""
    query = select(Round).where(Round.run_id == run_id).order_by(Round.number.desc()).limit(1)
    if lock:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    found: Round | None = await session.scalar(query)
    return found


async def one(session: AsyncSession, run_id: UUID, number: int) -> Round | None:
    return await session.get(Round, (run_id, number))


async def live(session: AsyncSession) -> Sequence[UUID]:
    """Runs with a round that is under way: those that run, and completed ones with a join."""
    query = select(Round.run_id).where(text(LIVE_ROUND))
    return (await session.scalars(query)).all()


async def page(
    session: AsyncSession, run_id: UUID, limit: int, after: int | None
) -> Sequence[Round]:
    query = select(Round).where(Round.run_id == run_id)
    if after is not None:
        query = query.where(Round.number > after)
    return (await session.scalars(query.order_by(Round.number).limit(limit + 1))).all()


def _joins_in(number: int | SQLColumnExpression[int]) -> ColumnElement[bool]:
    """Is the client of this ``RunClient`` row a member of that join round?"""
    return exists().where(
        JoinMember.run_id == RunClient.run_id,
        JoinMember.client_id == RunClient.client_id,
        JoinMember.round_number == number,
    )


def _sums_securely() -> ColumnElement[bool]:
    """Are the sums of the run of this ``Update`` row secure ones?"""
    return exists().where(
        Run.id == Update.run_id, Run.spec["plan"]["aggregation"].astext == "secure"
    )


@dataclass(frozen=True, slots=True)
class PlaceClient:
    id: UUID
    name: str
    managed: bool
    account_id: UUID
    budget_epsilon: float
    budget_delta: float
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class PlaceSeat:
    position: int
    left_at: datetime | None
    quarantined_at: datetime | None


@dataclass(frozen=True, slots=True)
class PlaceWork:
    state: str
    attempt: int
    lease_expires: datetime | None
    reason: str


@dataclass(frozen=True, slots=True)
class Place:
    """A client's place in one round: its seat in the run, its site's word, its newest attempt.

    Plain values, no rows of the session: a round of a thousand clients is looked at several times
    a second, and mapping its rows to objects would stop everything else for a tenth of a second.
    """

    client: PlaceClient
    seat: PlaceSeat
    consent: str  # of the plan: 'asked', 'approved' or 'refused'
    work: PlaceWork | None


async def places(session: AsyncSession, run_id: UUID, number: int, *, join: bool) -> list[Place]:
    """Every client of the round in order, with its newest attempt in it, if any: the founding
    clients of a run, or those who join by this round.
    """
    newest_attempt = (
        select(func.max(WorkItem.attempt))
        .where(
            WorkItem.run_id == run_id,
            WorkItem.round_number == number,
            WorkItem.client_id == RunClient.client_id,
        )
        .scalar_subquery()
    )
    item = aliased(WorkItem)
    query = (
        select(
            Client.id, Client.name, Client.managed, Client.account_id, Client.budget_epsilon,
            Client.budget_delta, Client.revoked_at,
            RunClient.position, RunClient.left_at, RunClient.quarantined_at,
            Consent.state,
            item.state, item.attempt, item.lease_expires, item.reason,
        )
        .join(RunClient, RunClient.client_id == Client.id)
        .join(
            Consent,
            (Consent.run_id == RunClient.run_id) & (Consent.client_id == RunClient.client_id),
        )
        .outerjoin(
            item,
            (item.run_id == RunClient.run_id)
            & (item.client_id == RunClient.client_id)
            & (item.round_number == number)
            & (item.attempt == newest_attempt),
        )
        .where(RunClient.run_id == run_id, _joins_in(number) if join else RunClient.founding)
        .order_by(RunClient.position)
    )  # fmt: skip
    return [
        Place(
            PlaceClient(*row[:7]),
            PlaceSeat(*row[7:10]),
            row[10],
            None if row[11] is None else PlaceWork(*row[11:]),
        )
        for row in map(tuple, await session.execute(query))
    ]


@dataclass(frozen=True, slots=True)
class Offer:
    """An order that is about to be made; its reservation is in the ledger."""

    id: UUID
    client_id: UUID
    managed: bool
    attempt: int
    available_at: datetime
    reservation_id: UUID


_OFFER = text(
    """
    INSERT INTO work_items
        (id, run_id, round_number, client_id, attempt, state, reason, available_at, reservation_id,
         queued_count)
    SELECT o.id, :run_id, :number, o.client_id, o.attempt, 'ready', '', o.available_at,
           o.reservation_id, 0
    FROM unnest(CAST(:ids AS uuid[]), CAST(:clients AS uuid[]), CAST(:attempts AS smallint[]),
                CAST(:times AS timestamptz[]), CAST(:reservations AS uuid[]))
         AS o (id, client_id, attempt, available_at, reservation_id)
    """
)


async def offer(session: AsyncSession, run_id: UUID, number: int, offers: Sequence[Offer]) -> None:
    """Orders that wait to be taken, all in one statement."""
    values = {
        "run_id": run_id, "number": number,
        "ids": [each.id for each in offers],
        "clients": [each.client_id for each in offers],
        "attempts": [each.attempt for each in offers],
        "times": [each.available_at for each in offers],
        "reservations": [each.reservation_id for each in offers],
    }  # fmt: skip
    await session.execute(_OFFER, values)


async def lock_open_work(
    session: AsyncSession, run_id: UUID, number: int, client_id: UUID | None = None
) -> Sequence[WorkItem]:
    """Attempts that are still out (of one client), under their locks, as they are once the locks
    are held.
    """
    query = (
        select(WorkItem)
        .where(
            WorkItem.run_id == run_id,
            WorkItem.round_number == number,
            WorkItem.state.in_(("ready", "leased")),
        )
        .order_by(WorkItem.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if client_id is not None:
        query = query.where(WorkItem.client_id == client_id)
    return (await session.scalars(query)).all()


async def waiting(session: AsyncSession, run_id: UUID) -> list[tuple[WorkItem, bool]]:
    """Orders of a run that nobody has claimed yet, locked; and is their client managed?"""
    query = (
        select(WorkItem, Client.managed)
        .join(Client, Client.id == WorkItem.client_id)
        .where(WorkItem.run_id == run_id, WorkItem.state == "ready")
        .order_by(WorkItem.id)
        .with_for_update(of=WorkItem, key_share=True)
        .execution_options(populate_existing=True)
    )
    return [(work, managed) for work, managed in await session.execute(query)]


async def with_code(
    session: AsyncSession, run_id: UUID, up_to_round: int | None = None
) -> set[UUID]:
    """Clients whose sketch is in a published model (up to that of a round); the others have no
    code in this run. The first sketch of secure sums is everybody's together, and nobody's code.
    """
    query = (
        select(Update.client_id)
        .join(Round, (Round.run_id == Update.run_id) & (Round.number == Update.round_number))
        .join(
            RunClient,
            (RunClient.run_id == Update.run_id) & (RunClient.client_id == Update.client_id),
        )
        .where(
            Update.run_id == run_id,
            Round.state == "published",
            or_(
                and_(Update.round_number == 0, ~_sums_securely()),
                _joins_in(Update.round_number),
            ),
        )
    )
    if up_to_round is not None:
        query = query.where(Update.round_number <= up_to_round)
    return set(await session.scalars(query))


async def updates_of(session: AsyncSession, run_id: UUID, number: int) -> list[tuple[Update, str]]:
    """Accepted updates with their clients' names, in the fixed order of the sums."""
    query = (
        select(Update, Client.name)
        .join(Client, Client.id == Update.client_id)
        .join(
            RunClient,
            (RunClient.run_id == Update.run_id) & (RunClient.client_id == Update.client_id),
        )
        .where(Update.run_id == run_id, Update.round_number == number)
        .order_by(RunClient.position)
    )
    return [(update, name) for update, name in await session.execute(query)]


async def withdrawn_before(
    session: AsyncSession, run_id: UUID, moment: datetime | None
) -> tuple[str, ...]:
    """Ids of the run's clients that were revoked by then; the same whenever one asks."""
    if moment is None:
        return ()
    query = (
        select(RunClient.client_id)
        .join(Client, Client.id == RunClient.client_id)
        .where(RunClient.run_id == run_id, Client.revoked_at <= moment)
        .order_by(RunClient.position)
    )
    return tuple(str(found) for found in await session.scalars(query))


async def job_of(session: AsyncSession, run_id: UUID, number: int) -> Job | None:
    """The one job that makes the round's model, locked (not its replays)."""
    found: Job | None = await session.scalar(
        select(Job)
        .where(Job.run_id == run_id, Job.round_number == number, Job.kind == "aggregate")
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return found


async def result(session: AsyncSession, run_id: UUID, number: int) -> dict[str, Any] | None:
    """What the round's finished job stored."""
    query = select(Job.result).where(Job.run_id == run_id, Job.round_number == number)
    found: dict[str, Any] | None = await session.scalar(query)
    return found


@dataclass(frozen=True)
class Model:
    """A published round's stored objects."""

    round_number: int
    frame: StoredObject
    weights: StoredObject
    optimiser_digest: str


async def model(
    session: AsyncSession, run_id: UUID, number: int | None, *, before: int | None = None
) -> Model | None:
    """The model of a published round (None: of the newest one, or of the newest ``before``).

    What a round works on is the newest model before it: rounds of a plan are published one by
    one, but a join may follow others that failed.
    """
    frame, weights = aliased(StoredObject), aliased(StoredObject)
    query = (
        select(Round.number, frame, weights, Round.optimiser_digest)
        .join(frame, frame.digest == Round.frame_digest)
        .join(weights, weights.digest == Round.weights_digest)
        .where(Round.run_id == run_id, Round.state == "published")
        .order_by(Round.number.desc())
        .limit(1)
    )
    if number is not None:
        query = query.where(Round.number == number)
    if before is not None:
        query = query.where(Round.number < before)
    row = (await session.execute(query)).first()
    if row is None or row[3] is None:
        return None
    return Model(row[0], row[1], row[2], row[3])
