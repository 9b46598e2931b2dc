"""SQL that only pages need: the newest first, names of ids, counts of rounds and of days."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.models import Client, Space, StoredObject, Token
from api.db.oversight_models import Consent
from api.db.run_models import Job, Round, Run, RunClient
from api.db.synthesis_models import SynthesisJob

UNDER_WAY = ("draft", "running", "paused")
_ROUNDS, _SPACES = 300, 200
_PAST_ROUNDS = text(
    """
    SELECT r.number, r.state, r.why, r.opened_at, r.closed_at, r.published_at, r.extended,
           (SELECT count(*) FROM updates u
            WHERE u.run_id = r.run_id AND u.round_number = r.number),
           (SELECT coalesce(sum(u.size), 0) FROM updates u
            WHERE u.run_id = r.run_id AND u.round_number = r.number),
           (SELECT count(*) FROM rejections j
            WHERE j.run_id = r.run_id AND j.round_number = r.number),
           (SELECT count(*) FROM work_items w
            WHERE w.run_id = r.run_id AND w.round_number = r.number AND w.state = 'lost')
    FROM rounds r WHERE r.run_id = :run_id ORDER BY r.number DESC LIMIT :limit
    """
)
# Ids are UUIDv7: those of events of a time and later are not smaller than ``floor``.
_ROWS_BY_DAY = text(
    """
    SELECT (at AT TIME ZONE 'UTC')::date, sum((detail->>'n')::bigint), count(*)
    FROM audit_events
    WHERE kind IN ('synthesis-served', 'synthesis-job-created') AND id >= :floor AND at >= :since
      AND (CAST(:token_id AS uuid) IS NULL OR actor_token = :token_id)
    GROUP BY 1 ORDER BY 1
    """
)


@dataclass(frozen=True)
class PastRound:
    number: int
    state: str
    why: str
    opened_at: datetime | None
    closed_at: datetime | None
    published_at: datetime | None
    extended: bool
    updates: int
    received: int
    refused: int
    lost: int


@dataclass(frozen=True)
class Day:
    """Rows and requests of one day (UTC)."""

    day: date
    rows: int
    requests: int


@dataclass(frozen=True)
class Held:
    """A client in quarantine in a run that goes on."""

    run: str
    run_id: UUID
    client: str
    client_id: UUID
    why: str


@dataclass(frozen=True)
class Seat:
    """A client's word on a run."""

    consent: Consent
    run: Run


@dataclass(frozen=True)
class Latest:
    """The newest published round of a run."""

    run: Run
    round: int
    published_at: datetime
    weights: str
    size: int


async def newest_runs(
    session: AsyncSession,
    limit: int,
    before: UUID | None = None,
    states: Collection[str] = (),
) -> Sequence[Run]:
    """One more than ``limit``, the newest first."""
    query = select(Run).order_by(Run.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(Run.id < before)
    if states:
        query = query.where(Run.state.in_(states))
    return (await session.scalars(query)).all()


async def past_rounds(session: AsyncSession, run_id: UUID, limit: int = _ROUNDS) -> list[PastRound]:
    """The newest first."""
    found = await session.execute(_PAST_ROUNDS, {"run_id": run_id, "limit": limit})
    return [PastRound(*row[:7], *map(int, row[7:])) for row in map(tuple, found)]


async def results(session: AsyncSession, run_id: UUID) -> list[tuple[int, dict[str, Any]]]:
    """(round, what its sum has stored) of the newest rounds, in their order."""
    query = (
        select(Job.round_number, Job.result)
        .where(Job.run_id == run_id, Job.kind == "aggregate", Job.state == "done")
        .order_by(Job.round_number.desc())
        .limit(_ROUNDS)
    )
    found = [(number, result) for number, result in await session.execute(query) if result]
    return found[::-1]


async def run_names(session: AsyncSession, ids: Iterable[UUID]) -> dict[UUID, str]:
    query = select(Run.id, Run.name).where(Run.id.in_(set(ids)))
    return {row[0]: row[1] for row in await session.execute(query)}


async def client_names(session: AsyncSession, ids: Iterable[UUID]) -> dict[UUID, str]:
    query = select(Client.id, Client.name).where(Client.id.in_(set(ids)))
    return {row[0]: row[1] for row in await session.execute(query)}


async def token_labels(session: AsyncSession, ids: Iterable[UUID]) -> dict[UUID, str]:
    query = select(Token.id, Token.label).where(Token.id.in_(set(ids)))
    return {row[0]: row[1] for row in await session.execute(query)}


async def count_clients(session: AsyncSession) -> int:
    """Those that are not revoked."""
    query = select(func.count()).where(Client.revoked_at.is_(None))
    return int(await session.scalar(query.select_from(Client)) or 0)


async def held(session: AsyncSession, limit: int = 20) -> list[Held]:
    query = (
        select(Run.name, Run.id, Client.name, Client.id, RunClient.quarantine_why)
        .join(RunClient, RunClient.run_id == Run.id)
        .join(Client, Client.id == RunClient.client_id)
        .where(
            Run.state.in_(UNDER_WAY),
            RunClient.quarantined_at.is_not(None),
            RunClient.left_at.is_(None),
            Client.revoked_at.is_(None),
        )
        .order_by(Run.id, RunClient.position)
        .limit(limit)
    )
    return [
        Held(run, run_id, client, client_id, why)
        for run, run_id, client, client_id, why in await session.execute(query)
    ]


async def newest_seats(session: AsyncSession, client_id: UUID, limit: int) -> list[Seat]:
    """Runs that have asked for a client, those that asked last first."""
    query = (
        select(Consent, Run)
        .join(Run, Run.id == Consent.run_id)
        .where(Consent.client_id == client_id)
        .order_by(Consent.id.desc())
        .limit(limit)
    )
    return [Seat(consent, run) for consent, run in await session.execute(query)]


async def going_on(session: AsyncSession, account_id: UUID) -> list[tuple[UUID, Run]]:
    """(client, run) of every seat of the account's clients in a run that may still charge it."""
    query = (
        select(RunClient.client_id, Run)
        .join(Run, Run.id == RunClient.run_id)
        .join(Client, Client.id == RunClient.client_id)
        .join(
            Consent,
            (Consent.run_id == RunClient.run_id) & (Consent.client_id == RunClient.client_id),
        )
        .where(
            Client.account_id == account_id,
            Client.revoked_at.is_(None),
            RunClient.founding,
            RunClient.left_at.is_(None),
            Consent.state != "refused",
            Run.state.in_(("running", "paused")),
        )
        .order_by(Run.id, RunClient.position)
    )
    return [(client_id, run) for client_id, run in await session.execute(query)]


async def latest_models(
    session: AsyncSession, limit: int, before: UUID | None = None
) -> list[Latest]:
    """One more than ``limit``, of the newest runs first."""
    newest = (
        select(Round.run_id, func.max(Round.number).label("number"))
        .where(Round.state == "published")
        .group_by(Round.run_id)
        .subquery()
    )
    query = (
        select(Run, Round.number, Round.published_at, StoredObject.digest, StoredObject.size)
        .join(newest, newest.c.run_id == Run.id)
        .join(Round, (Round.run_id == Run.id) & (Round.number == newest.c.number))
        .join(StoredObject, StoredObject.digest == Round.weights_digest)
        .order_by(Run.id.desc())
        .limit(limit + 1)
    )
    if before is not None:
        query = query.where(Run.id < before)
    return [
        Latest(run, number, at, digest, size)
        for run, number, at, digest, size in await session.execute(query)
        if at is not None  # a published round has a time: the schema sees to it
    ]


async def newest_jobs(
    session: AsyncSession, token_id: UUID | None, limit: int
) -> list[tuple[SynthesisJob, Run]]:
    """Of one token, or (None) of all; the newest first."""
    query = (
        select(SynthesisJob, Run)
        .join(Run, Run.id == SynthesisJob.run_id)
        .order_by(SynthesisJob.id.desc())
        .limit(limit)
    )
    if token_id is not None:
        query = query.where(SynthesisJob.token_id == token_id)
    return [(job, run) for job, run in await session.execute(query)]


async def rows_by_day(
    session: AsyncSession, token_id: UUID | None, now: datetime, days: int
) -> list[Day]:
    """What was asked for on each of these days, today the last one; also where it was nothing."""
    first = now.date() - timedelta(days=days - 1)
    since = datetime(first.year, first.month, first.day, tzinfo=now.tzinfo)
    # A day earlier: clocks that made the ids may differ from the database's.
    floor = UUID(int=int((since.timestamp() - 86_400) * 1000) << 80)
    values = {"since": since, "floor": floor, "token_id": token_id}
    found = {row[0]: row[1:] for row in map(tuple, await session.execute(_ROWS_BY_DAY, values))}
    all_days = [first + timedelta(days=number) for number in range(days)]
    return [Day(day, *map(int, found.get(day, (0, 0)))) for day in all_days]


async def run_called(session: AsyncSession, name: str) -> UUID | None:
    found: UUID | None = await session.scalar(select(Run.id).where(Run.name == name))
    return found


async def client_called(session: AsyncSession, name: str) -> UUID | None:
    found: UUID | None = await session.scalar(select(Client.id).where(Client.name == name))
    return found


async def space_names(session: AsyncSession) -> Sequence[str]:
    """Of the newest embedding spaces."""
    newest = select(Space.name).order_by(Space.id.desc()).limit(_SPACES)
    return (await session.scalars(newest)).all()
