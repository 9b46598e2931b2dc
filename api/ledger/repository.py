"""SQL of the ledger. Rows are only ever inserted; the database refuses everything else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.db.models import Account, Client
from api.db.run_models import LedgerEntry, Run, RunClient, WorkItem


async def lock_accounts(session: AsyncSession, account_ids: Iterable[UUID]) -> None:
    """Reservations of one account happen one after the other. (Outcomes need no lock: they do not
    change the worst case. FOR NO KEY UPDATE, so that their foreign keys do not wait either.)
    Locked in the order of their ids, so that two who lock several never wait for each other.
    """
    await session.execute(
        select(Account.id)
        .where(Account.id.in_(account_ids))
        .order_by(Account.id)
        .with_for_update(key_share=True)
    )


async def of_account(session: AsyncSession, account_id: UUID) -> Sequence[LedgerEntry]:
    """All entries, oldest first."""
    query = select(LedgerEntry).where(LedgerEntry.account_id == account_id)
    return (await session.scalars(query.order_by(LedgerEntry.id))).all()


async def reservations(session: AsyncSession, account_id: UUID) -> list[dict[str, object]]:
    """Events of every reservation: the worst case, whatever became of them."""
    query = select(LedgerEntry.event).where(
        LedgerEntry.account_id == account_id, LedgerEntry.kind == "reserve"
    )
    return [event for event in await session.scalars(query) if event is not None]


async def charged(
    session: AsyncSession, account_ids: Iterable[UUID], run_id: UUID
) -> list[tuple[UUID, UUID, bool, str, int]]:
    """(account, client, whether by this run, event as JSON, how often) of every reservation: what
    the accounts were charged, counted by the database, so that a long run stays cheap to check.
    """
    own = (LedgerEntry.run_id == run_id).label("own")
    event = cast(LedgerEntry.event, Text).label("event")
    query = (
        select(LedgerEntry.account_id, LedgerEntry.client_id, own, event, func.count())
        .where(LedgerEntry.account_id.in_(account_ids), LedgerEntry.kind == "reserve")
        .group_by(LedgerEntry.account_id, LedgerEntry.client_id, own, event)
    )
    rows = await session.execute(query)
    return [(row[0], row[1], row[2], row[3], row[4]) for row in rows]


async def reservations_of_run(
    session: AsyncSession, run_id: UUID, up_to_round: int
) -> list[tuple[UUID, dict[str, object]]]:
    """(account, event) of everything that a run reserved up to a round."""
    query = select(LedgerEntry.account_id, LedgerEntry.event).where(
        LedgerEntry.run_id == run_id,
        LedgerEntry.round_number <= up_to_round,
        LedgerEntry.kind == "reserve",
    )
    return [(account, event) for account, event in await session.execute(query) if event]


_RESERVE = text(
    """
    INSERT INTO ledger_entries
        (id, account_id, client_id, run_id, round_number, attempt, kind, event)
    SELECT r.id, r.account_id, r.client_id, :run_id, :number, r.attempt, 'reserve',
           CAST(:event AS jsonb)
    FROM unnest(CAST(:ids AS uuid[]), CAST(:accounts AS uuid[]), CAST(:clients AS uuid[]),
                CAST(:attempts AS smallint[])) AS r (id, account_id, client_id, attempt)
    """
)


@dataclass(frozen=True)
class Reservation:
    id: UUID
    account_id: UUID
    client_id: UUID
    attempt: int


async def reserve(
    session: AsyncSession,
    reservations: Sequence[Reservation],
    *,
    run_id: UUID,
    number: int,
    event: str,
) -> None:
    """All of them in one statement; ``event`` as JSON."""
    values = {
        "ids": [r.id for r in reservations],
        "accounts": [r.account_id for r in reservations],
        "clients": [r.client_id for r in reservations],
        "attempts": [r.attempt for r in reservations],
        "run_id": run_id, "number": number, "event": event,
    }  # fmt: skip
    await session.execute(_RESERVE, values)


_SETTLE = text(
    """
    INSERT INTO ledger_entries
        (id, account_id, client_id, run_id, round_number, attempt, kind, reserve_id)
    SELECT :id, account_id, client_id, run_id, round_number, attempt, :outcome, id
    FROM ledger_entries WHERE id = :reservation_id
    RETURNING id
    """
)


async def settle(session: AsyncSession, reservation_id: UUID, outcome: str) -> None:
    """The reservation's one outcome, on the same account and attempt."""
    values = {"id": uuid7(), "outcome": outcome, "reservation_id": reservation_id}
    (await session.execute(_SETTLE, values)).scalar_one()


async def client_names(session: AsyncSession, account_id: UUID) -> dict[UUID, str]:
    rows = await session.execute(
        select(Client.id, Client.name).where(Client.account_id == account_id)
    )
    return {row[0]: row[1] for row in rows}


async def runs_of_account(session: AsyncSession, account_id: UUID) -> dict[UUID, tuple[str, str]]:
    """Run -> (name, digest of its specification), of every run that charged the account."""
    charged = select(LedgerEntry.run_id).where(LedgerEntry.account_id == account_id)
    rows = await session.execute(
        select(Run.id, Run.name, Run.spec_digest).where(Run.id.in_(charged)).order_by(Run.id)
    )
    return {row[0]: (row[1], row[2]) for row in rows}


async def secure_runs(
    session: AsyncSession, account_id: UUID
) -> dict[UUID, tuple[dict[str, Any], int]]:
    """Run with secure sums that charged the account -> (its specification, founding clients)."""
    charged = select(LedgerEntry.run_id).where(LedgerEntry.account_id == account_id)
    founding = (
        select(func.count()).where(RunClient.run_id == Run.id, RunClient.founding).scalar_subquery()
    )
    rows = await session.execute(
        select(Run.id, Run.spec, founding).where(
            Run.id.in_(charged), Run.spec["plan"]["aggregation"].astext == "secure"
        )
    )
    return {row[0]: (row[1], row[2]) for row in rows}


async def reasons_of_losses(session: AsyncSession, account_id: UUID) -> dict[UUID, str]:
    """Lost reservation -> why its attempt ended."""
    rows = await session.execute(
        select(LedgerEntry.reserve_id, WorkItem.reason)
        .join(WorkItem, WorkItem.reservation_id == LedgerEntry.reserve_id)
        .where(LedgerEntry.account_id == account_id, LedgerEntry.kind == "lost")
    )
    return {row[0]: row[1] for row in rows if row[0] is not None}
