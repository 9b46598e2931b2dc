"""Nothing is handed out before it is reserved, and nothing is reserved beyond a budget.

What a budget is compared with is the account's worst case: every reservation, whatever became of
it. Two clients over one population share the account, each is held to its own budget.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.ledger import repository
from core.errors import BudgetExceeded
from core.privacy import budget
from core.privacy.events import PrivacyEvent


class Charged(Protocol):
    """Whoever is charged: a client's row, or its plain values."""

    @property
    def id(self) -> UUID: ...
    @property
    def account_id(self) -> UUID: ...
    @property
    def budget_epsilon(self) -> float: ...
    @property
    def budget_delta(self) -> float: ...


@dataclass(frozen=True)
class Attempt:
    """An attempt that is about to be offered, and who is charged for it."""

    client: Charged
    number: int


async def reserve(
    session: AsyncSession,
    attempts: Sequence[Attempt],
    *,
    run_id: UUID,
    round_number: int,
    event: PrivacyEvent,
    planned: Sequence[PrivacyEvent],
) -> list[UUID | BudgetExceeded]:
    """Set the event aside once for each attempt, under the accounts' locks. For each attempt: its
    reservation's id, or why it has none.

    ``planned``: what a client's part of the run is if nothing is lost. It decides nothing; it lets
    all rounds of a run be answered by one evaluation (``core.privacy.budget``).
    """
    accounts = {attempt.client.account_id for attempt in attempts}
    await repository.lock_accounts(session, accounts)
    charged = await repository.charged(session, accounts, run_id)
    refusals = await asyncio.to_thread(_refusals, attempts, charged, event, planned)
    made: list[UUID | BudgetExceeded] = [refusal or uuid7() for refusal in refusals]
    await repository.reserve(
        session,
        [
            repository.Reservation(given, each.client.account_id, each.client.id, each.number)
            for given, each in zip(made, attempts, strict=True)
            if isinstance(given, UUID)
        ],
        run_id=run_id,
        number=round_number,
        event=event.model_dump_json(),
    )
    return made


def _refusals(
    attempts: Sequence[Attempt],
    charged: Iterable[tuple[UUID, UUID, bool, str, int]],
    event: PrivacyEvent,
    planned: Sequence[PrivacyEvent],
) -> list[BudgetExceeded | None]:
    """Judged one after the other: what an attempt reserves, the next one of its account finds.

    Clients with the same charges and the same budget get the same answer, worked out once.
    """
    parsed: dict[str, PrivacyEvent] = {}
    books: dict[UUID, dict[tuple[UUID, bool], budget.Steps]] = {}
    for account, client, by_run, data, count in charged:
        if data not in parsed:
            parsed[data] = PrivacyEvent.model_validate_json(data)
        one = parsed[data]
        steps = books.setdefault(account, {}).setdefault((client, by_run), Counter())
        steps[one.model_copy(update={"steps": 1})] += one.steps * count
    wanted = budget.steps_of([event])
    answers: dict[Hashable, BudgetExceeded | None] = {}
    found: list[BudgetExceeded | None] = []
    for attempt in attempts:
        whom = attempt.client
        book = books.setdefault(whom.account_id, {})
        own = book.setdefault((whom.id, True), Counter())
        others: budget.Steps = Counter()
        for whose, counts in book.items():
            if whose != (whom.id, True):
                others.update(counts)
        limit = (whom.budget_epsilon, whom.budget_delta)
        key = (frozenset(own.items()), frozenset(others.items()), limit)
        if key not in answers:
            answers[key] = _refusal(own, others, event, planned, *limit)
        found.append(answers[key])
        if answers[key] is None:
            own.update(wanted)
    return found


def _refusal(
    own: budget.Steps,
    others: budget.Steps,
    event: PrivacyEvent,
    planned: Sequence[PrivacyEvent],
    epsilon_budget: float,
    delta: float,
) -> BudgetExceeded | None:
    try:
        budget.require_within_budget(
            own=budget.events_of(own),
            others=budget.events_of(others),
            wanted=[event],
            planned=planned,
            epsilon_budget=epsilon_budget,
            delta=delta,
        )
    except BudgetExceeded as refusal:
        return refusal
    return None
