"""SQL of consents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from api.db.base import uuid7
from api.db.models import Client
from api.db.oversight_models import Consent
from api.db.run_models import JoinMember, OutboxMessage, Round, Run, RunClient
from api.pages import cut

# In these a client may still be given work of a round.
_ENTERED = ("draft", "open")


@dataclass(frozen=True)
class Asked:
    """A consent with what it is about. ``waiting``: the round that may wait for it."""

    consent: Consent
    run: Run
    client: Client
    founding: bool
    waiting: Round | None


def wanted() -> ColumnElement[bool]:
    """May the run still use this consent's client? (For queries over ``Consent``, ``Run``,
    ``Client`` and ``RunClient``: the run goes on, or a join round with this client does.)
    """
    joins = exists().where(
        JoinMember.run_id == Consent.run_id,
        JoinMember.client_id == Consent.client_id,
        Round.run_id == JoinMember.run_id,
        Round.number == JoinMember.round_number,
        Round.state.in_(_ENTERED),
    )
    goes_on = and_(RunClient.founding, Run.state.in_(("draft", "running", "paused")))
    there = and_(RunClient.left_at.is_(None), Client.revoked_at.is_(None))
    return and_(there, or_(goes_on, joins))


def _all() -> Select[Any]:
    """Consents with run, client, and the one round of the run that is being filled, if any."""
    live = aliased(Round)
    query: Any = (
        select(Consent, Run, Client, RunClient.founding, live)
        .join(Run, Run.id == Consent.run_id)
        .join(Client, Client.id == Consent.client_id)
        .join(
            RunClient,
            (RunClient.run_id == Consent.run_id) & (RunClient.client_id == Consent.client_id),
        )
        .outerjoin(live, (live.run_id == Consent.run_id) & live.state.in_(_ENTERED))
    )
    chosen: Select[Any] = query
    return chosen


async def _read(session: AsyncSession, query: Select[Any]) -> list[Asked]:
    rows = await session.execute(query.execution_options(populate_existing=True))
    return [Asked(*row) for row in rows]


async def page(
    session: AsyncSession,
    limit: int,
    after: UUID | None,
    *,
    client_id: UUID | None = None,
    client: str | None = None,
    managed: bool | None = None,
    state: str | None = None,
) -> list[Asked]:
    """Oldest first. State ``asked`` means: and the run still wants an answer."""
    query = _all()
    if client_id is not None:
        query = query.where(Consent.client_id == client_id)
    if client is not None:
        query = query.where(Client.name == client)
    if managed is not None:
        query = query.where(Client.managed.is_(managed))
    if state is not None:
        query = query.where(Consent.state == state)
    if state == "asked":
        query = query.where(wanted())
    return await _read(session, cut(query, Consent.id, limit, after))


async def awaiting(
    session: AsyncSession,
    client_id: UUID,
    *,
    run_id: UUID | None = None,
    but: Iterable[UUID] = (),
    limit: int | None = None,
) -> list[Asked]:
    """What awaits this client's word (in one run; but for some), oldest first."""
    query = _all().where(Consent.client_id == client_id, Consent.state == "asked", wanted())
    if run_id is not None:
        query = query.where(Consent.run_id == run_id)
    if skipped := list(but):
        query = query.where(Consent.id.not_in(skipped))
    return await _read(session, query.order_by(Consent.id).limit(limit))


async def one(session: AsyncSession, run_id: UUID, client_id: UUID) -> Asked | None:
    query = _all().where(Consent.run_id == run_id, Consent.client_id == client_id)
    found = await _read(session, query)
    return found[0] if found else None


async def of_managed(session: AsyncSession, plan_id: UUID) -> Asked | None:
    """A plan of a managed client that awaits an answer."""
    query = _all().where(Consent.id == plan_id, Consent.state == "asked", Client.managed, wanted())
    found = await _read(session, query)
    return found[0] if found else None


async def lock(session: AsyncSession, run_id: UUID, client_id: UUID) -> None:
    """Two decisions on one plan come one after the other."""
    await session.execute(
        select(Consent.id)
        .where(Consent.run_id == run_id, Consent.client_id == client_id)
        .with_for_update(key_share=True)
    )


async def is_wanted(session: AsyncSession, consent: Consent) -> bool:
    query = _all().where(Consent.id == consent.id, wanted())
    return (await session.execute(query)).first() is not None


async def states(session: AsyncSession, run_id: UUID) -> dict[UUID, str]:
    """State by client, of everybody who was asked in this run."""
    rows = await session.execute(
        select(Consent.client_id, Consent.state).where(Consent.run_id == run_id)
    )
    return {row[0]: row[1] for row in rows}


async def add(
    session: AsyncSession, run: Run, epsilons: Sequence[tuple[Client, float]]
) -> Sequence[Consent]:
    """New rows in state ``asked``; who was asked in this run before is not asked again."""
    if not epsilons:
        return []
    made = await session.scalars(
        insert(Consent)
        .values(
            [
                {
                    "id": uuid7(),
                    "run_id": run.id,
                    "client_id": client.id,
                    "spec_digest": run.spec_digest,
                    "epsilon": epsilon,
                    "state": "asked",
                    "why": "",
                    "queued_count": 0,
                }
                for client, epsilon in epsilons
            ]
        )
        .on_conflict_do_nothing(index_elements=["run_id", "client_id"])
        .returning(Consent)
    )
    return made.all()


async def sharing(session: AsyncSession, run_id: UUID, account_id: UUID) -> Sequence[UUID]:
    """Clients of the run over one population that may still be given its work: who founded it
    and the members of a join that is under way.
    """
    joins = exists().where(
        JoinMember.run_id == RunClient.run_id,
        JoinMember.client_id == RunClient.client_id,
        Round.run_id == JoinMember.run_id,
        Round.number == JoinMember.round_number,
        Round.state.in_(_ENTERED),
    )
    query = (
        select(Client.id)
        .join(RunClient, RunClient.client_id == Client.id)
        .join(Run, Run.id == RunClient.run_id)
        .outerjoin(
            Consent,
            (Consent.run_id == RunClient.run_id) & (Consent.client_id == RunClient.client_id),
        )
        .where(
            RunClient.run_id == run_id,
            Client.account_id == account_id,
            RunClient.left_at.is_(None),
            or_(Consent.state.is_(None), Consent.state != "refused"),
            or_(and_(RunClient.founding, Run.state != "completed"), joins),
        )
    )
    return (await session.scalars(query)).all()


async def unannounced(session: AsyncSession) -> Sequence[Consent]:
    """Of managed clients that were asked and have not answered, locked; not while a message about
    them still waits to be sent.
    """
    unsent = exists().where(OutboxMessage.subject == Consent.id, OutboxMessage.sent_at.is_(None))
    query = (
        select(Consent)
        .join(Run, Run.id == Consent.run_id)
        .join(Client, Client.id == Consent.client_id)
        .join(
            RunClient,
            (RunClient.run_id == Consent.run_id) & (RunClient.client_id == Consent.client_id),
        )
        .where(Client.managed, Consent.state == "asked", wanted(), ~unsent)
        .with_for_update(of=Consent, key_share=True, skip_locked=True)
    )
    return (await session.scalars(query)).all()


def approved(run_id: Any, client_id: Any) -> ColumnElement[bool]:
    """Has the site approved this run for this client? Columns or values."""
    return exists().where(
        Consent.run_id == run_id, Consent.client_id == client_id, Consent.state == "approved"
    )


async def has_approved(session: AsyncSession, run_id: UUID, client_id: UUID) -> bool:
    return bool(await session.scalar(select(approved(run_id, client_id))))


async def settle(
    session: AsyncSession, consent: Consent, *, state: str, by: str, why: str, now: datetime
) -> None:
    consent.state, consent.decided_by = state, by
    consent.decided_at, consent.why = now, why
    await session.flush()
