"""What an account was charged, the outcomes of its reservations, and its statement.

What a budget is compared with is the account's worst case: every reservation, whatever became of
it. Two clients over one population share the account, each is held to its own budget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api.clients.service import Budget
from api.db.models import Client
from api.ledger import repository
from core.privacy import budget, ledger
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.privacy.premise import premise


class AccountView(BaseModel):
    site: str
    population: str
    unit: str


class EntryView(BaseModel):
    id: UUID
    kind: Literal["reserve", "commit", "lost"]
    client: str
    event: PrivacyEvent | None
    reserve_id: UUID | None
    run_id: UUID
    round: int
    attempt: int
    at: datetime


class LedgerView(BaseModel):
    """``epsilon_committed``: commits and losses (a loss is never refunded); ``epsilon_reserved``:
    what the open reservations may add to it; ``epsilon_total``: all of it together.
    """

    client: str
    account: AccountView
    budget: Budget
    epsilon_committed: float
    epsilon_reserved: float
    epsilon_total: float
    premise: str = Field(
        description="Who must keep to the protocol for these to hold, if secure sums are among "
        "the entries; else 'none'. The statement says what they are without it."
    )
    delta: float
    entries: list[EntryView]


class ClientSpent(BaseModel):
    """What one client's population has paid for a model."""

    client: str
    epsilon: float
    delta: float
    unit: str


def _event(data: dict[str, Any]) -> PrivacyEvent:
    return PrivacyEvent.model_validate(data)


async def worst_case(session: AsyncSession, client: Client) -> list[PrivacyEvent]:
    """Everything that the client's account was ever charged, whatever became of it."""
    rows = await repository.reservations(session, client.account_id)
    return budget.events_of(budget.steps_of(_event(event) for event in rows))


async def check(session: AsyncSession, client: Client, wanted: Iterable[PrivacyEvent]) -> float:
    """Epsilon after ``wanted``, recomputed; ``BudgetExceeded`` if that passes the budget."""
    spent = await worst_case(session, client)
    return await asyncio.to_thread(
        ledger.check_budget,
        spent,
        list(wanted),
        epsilon_budget=client.budget_epsilon,
        delta=client.budget_delta,
    )


async def settle(
    session: AsyncSession, reservation_id: UUID, outcome: Literal["commit", "lost"]
) -> None:
    """Write a reservation's one outcome; a second one violates a unique index."""
    await session.flush()
    await repository.settle(session, reservation_id, outcome)


def _pure(entry: EntryView) -> ledger.Entry:
    return ledger.Entry(
        id=str(entry.id),
        kind=entry.kind,
        event=entry.event,
        reserve_id=str(entry.reserve_id) if entry.reserve_id else None,
    )


async def entries(session: AsyncSession, client: Client) -> list[EntryView]:
    """All entries of the client's account, oldest first."""
    names = await repository.client_names(session, client.account_id)
    return [
        EntryView(
            id=row.id,
            kind=row.kind,
            client=names[row.client_id],
            event=_event(row.event) if row.event else None,
            reserve_id=row.reserve_id,
            run_id=row.run_id,
            round=row.round_number,
            attempt=row.attempt,
            at=row.at,
        )
        for row in await repository.of_account(session, client.account_id)
    ]


def account_of(client: Client) -> AccountView:
    account = client.account
    return AccountView(site=account.site, population=account.population, unit=account.unit)


async def statement(session: AsyncSession, client: Client) -> LedgerView:
    """The account's entries and what they add up to, recomputed from the events."""
    shown = await entries(session, client)
    pure, delta = [_pure(entry) for entry in shown], client.budget_delta
    committed = await asyncio.to_thread(ledger.epsilon_committed, pure, delta)
    total = await asyncio.to_thread(ledger.epsilon_total, pure, delta)
    return LedgerView(
        client=client.name,
        account=account_of(client),
        budget=Budget(epsilon=client.budget_epsilon, delta=delta),
        epsilon_committed=committed,
        epsilon_reserved=max(0.0, total - committed),
        epsilon_total=total,
        premise=premise(entry.event.collude for entry in shown if entry.event is not None),
        delta=delta,
        entries=shown,
    )


async def spent_on_model(
    session: AsyncSession, run_id: UUID, clients: Iterable[Client], round_number: int, delta: float
) -> list[ClientSpent]:
    """Per client: epsilon at the plan's delta of all that the run reserved of its account up to
    this round. Clients that share an account show the account's figure, which is the true one.
    """
    by_account: dict[UUID, list[PrivacyEvent]] = {}
    for account, event in await repository.reservations_of_run(session, run_id, round_number):
        by_account.setdefault(account, []).append(_event(event))
    spent = []
    for client in clients:
        events = by_account.get(client.account_id, [])
        spent.append(
            ClientSpent(
                client=client.name,
                epsilon=await asyncio.to_thread(epsilon, events, delta),
                delta=delta,
                unit=client.account.unit,
            )
        )
    return spent
