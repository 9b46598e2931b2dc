"""An account's statement for an auditor: what was spent, run by run, and how to recompute it.

Epsilon of parts is of each part by itself: such numbers do not add up. What a budget is compared
with is ``epsilon.total``, of all reservations together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api.clients.service import Budget
from api.db.models import Client
from api.ledger import repository
from api.ledger.service import AccountView, EntryView, account_of, entries
from core.federation.plan import RunSpec
from core.privacy import accounting
from core.privacy.accounting import epsilon
from core.privacy.discrete.lattice import Lattice
from core.privacy.events import PrivacyEvent, Relation
from core.privacy.premise import View
from core.privacy.views import Release, release_of, views

# Runs with secure sums: their specification, and how many founding clients they have.
Secure = dict[UUID, tuple[RunSpec, int]]
Standing = Literal["commit", "lost", "open"]


class Accountant(BaseModel):
    """What computed the numbers: the same package and version give the same ones."""

    method: str
    package: str
    version: str


class Epsilons(BaseModel):
    """Upper bounds at the statement's delta."""

    committed: float = Field(description="Of accepted updates by themselves.")
    lost: float = Field(description="Of lost reservations by themselves. Never refunded.")
    open: float = Field(description="Of reservations without an outcome, by themselves.")
    charged: float = Field(description="Committed and lost together.")
    total: float = Field(description="All together: the worst case, and what a budget limits.")


class EventCount(BaseModel):
    """One kind of event and how many reservations of it there are, by what became of them."""

    event: PrivacyEvent
    committed: int
    lost: int
    open: int


class LostView(BaseModel):
    client: str
    round: int
    attempt: int
    reason: str
    reserved_at: datetime
    lost_at: datetime
    event: PrivacyEvent


class RunStatement(BaseModel):
    run_id: UUID
    run: str
    spec_digest: str
    rounds: int = Field(description="In how many rounds there was a reservation.")
    attempts: int = Field(description="Reservations: committed, lost and open.")
    committed: int
    lost: int
    open: int
    epsilon: Epsilons
    events: list[EventCount]
    views: list[View] = Field(
        default_factory=list,
        description="Of a run with secure sums, all its reservations together: epsilon by who "
        "looks, and the premise of each number. The booked one is epsilon.total.",
    )
    lost_reservations: list[LostView]


class StatementView(BaseModel):
    """``clients``: all that are enrolled over this population and spend from this account."""

    client: str
    clients: list[str]
    account: AccountView
    budget: Budget
    delta: float
    relation: Relation
    accountant: Accountant
    computed_at: datetime
    epsilon: Epsilons
    views: list[View] = Field(
        default_factory=list,
        description="The same of all runs together; empty if no run had secure sums.",
    )
    runs: list[RunStatement]


@dataclass(frozen=True)
class Reservation:
    """A reservation and what became of it."""

    entry: EntryView
    event: PrivacyEvent
    standing: Standing
    settled_at: datetime | None


def reservations(shown: Iterable[EntryView]) -> list[Reservation]:
    """Each reservation once, with its outcome; oldest first. Raises nothing: the database allows
    one outcome at most, and none without its reservation.
    """
    outcomes: dict[UUID, EntryView] = {}
    reserved: list[EntryView] = []
    for entry in shown:
        if entry.reserve_id is None:
            reserved.append(entry)
        else:
            outcomes[entry.reserve_id] = entry
    found = []
    for entry in reserved:
        outcome = outcomes.get(entry.id)
        standing: Standing = "open"
        if outcome is not None:
            standing = "commit" if outcome.kind == "commit" else "lost"
        if entry.event is not None:
            settled = None if outcome is None else outcome.at
            found.append(Reservation(entry, entry.event, standing, settled))
    return found


def _epsilons(rows: Sequence[Reservation], delta: float) -> Epsilons:
    def of(*standings: Standing) -> float:
        return epsilon([row.event for row in rows if row.standing in standings], delta)

    return Epsilons(
        committed=of("commit"),
        lost=of("lost"),
        open=of("open"),
        charged=of("commit", "lost"),
        total=of("commit", "lost", "open"),
    )


def _counts(rows: Sequence[Reservation]) -> list[EventCount]:
    counts = Counter((row.event, row.standing) for row in rows)
    kinds = dict.fromkeys(row.event for row in rows)
    return [
        EventCount(
            event=kind,
            committed=counts[kind, "commit"],
            lost=counts[kind, "lost"],
            open=counts[kind, "open"],
        )
        for kind in kinds
    ]


def _lost(row: Reservation, reasons: dict[UUID, str]) -> LostView:
    return LostView(
        client=row.entry.client,
        round=row.entry.round,
        attempt=row.entry.attempt,
        reason=reasons.get(row.entry.id, ""),
        reserved_at=row.entry.at,
        lost_at=row.settled_at or row.entry.at,
        event=row.event,
    )


def _views(rows: Sequence[Reservation], secure: Secure, delta: float) -> list[View]:
    """By the ledger's events, and the grid of their rounds if their run had secure sums."""
    grids: dict[tuple[UUID, int], Lattice | None] = {}
    for row in rows:
        key = row.entry.run_id, row.entry.round
        if key[0] in secure and key not in grids:
            spec, clients = secure[key[0]]
            grids[key] = release_of(spec, key[1], clients).grid
    if not grids:
        return []
    found = [Release(row.event, grids.get((row.entry.run_id, row.entry.round))) for row in rows]
    return list(views(found, delta))


def _run(
    run_id: UUID,
    named: tuple[str, str],
    rows: Sequence[Reservation],
    reasons: dict[UUID, str],
    delta: float,
    secure: Secure,
) -> RunStatement:
    standings = Counter(row.standing for row in rows)
    return RunStatement(
        run_id=run_id,
        run=named[0],
        spec_digest=named[1],
        rounds=len({row.entry.round for row in rows}),
        attempts=len(rows),
        committed=standings["commit"],
        lost=standings["lost"],
        open=standings["open"],
        epsilon=_epsilons(rows, delta),
        events=_counts(rows),
        views=_views(rows, secure, delta),
        lost_reservations=[_lost(row, reasons) for row in rows if row.standing == "lost"],
    )


@dataclass(frozen=True)
class Facts:
    """What the database says; everything else in a statement is computed from it."""

    client: str
    clients: list[str]
    account: AccountView
    budget: Budget
    rows: list[Reservation]
    runs: dict[UUID, tuple[str, str]]
    reasons: dict[UUID, str]
    secure: Secure
    read_at: datetime


async def gather(session: AsyncSession, client: Client, now: datetime) -> Facts:
    names = await repository.client_names(session, client.account_id)
    return Facts(
        client=client.name,
        clients=sorted(names.values()),
        account=account_of(client),
        budget=Budget(epsilon=client.budget_epsilon, delta=client.budget_delta),
        rows=reservations(await entries(session, client)),
        runs=await repository.runs_of_account(session, client.account_id),
        reasons=await repository.reasons_of_losses(session, client.account_id),
        secure={
            run_id: (RunSpec.model_validate(spec), clients)
            for run_id, (spec, clients) in (
                await repository.secure_runs(session, client.account_id)
            ).items()
        },
        read_at=now,
    )


def statement(facts: Facts) -> StatementView:
    """The account's statement at the client's delta, recomputed from its events: a tenth of a
    second for each run.
    """
    delta = facts.budget.delta
    by_run: dict[UUID, list[Reservation]] = {}
    for row in facts.rows:
        by_run.setdefault(row.entry.run_id, []).append(row)
    return StatementView(
        client=facts.client,
        clients=facts.clients,
        account=facts.account,
        budget=facts.budget,
        delta=delta,
        relation="add-remove-one-unit",
        accountant=Accountant(
            method=accounting.ACCOUNTANT,
            package=accounting.PACKAGE,
            version=accounting.package_version(),
        ),
        computed_at=facts.read_at,
        epsilon=_epsilons(facts.rows, delta),
        views=_views(facts.rows, facts.secure, delta),
        runs=[
            _run(run_id, facts.runs[run_id], mine, facts.reasons, delta, facts.secure)
            for run_id, mine in by_run.items()
        ],
    )
