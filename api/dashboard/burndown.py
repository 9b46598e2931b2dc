"""How a client's budget goes down, and where the runs under way will leave it.

Every figure is recomputed from the ledger's events at the client's delta, for adding or removing
one unit. A reservation counts from the moment it was made, whatever became of it: this is what the
budget is compared with.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Context
from api.dashboard import repository
from api.db.models import Client
from api.db.run_models import LedgerEntry, Run
from api.ledger import repository as ledger
from api.runs.specs import spec_of
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.privacy.premise import premise

# One evaluation of the accountant takes a tenth of a second.
_POINTS = 12


@dataclass(frozen=True)
class Point:
    at: datetime
    spent: float


@dataclass(frozen=True)
class Forecast:
    """If no attempt is lost: when the runs under way have ended at their present pace, and what
    the account will have spent by then.
    """

    at: datetime
    spent: float
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Burndown:
    budget: float
    delta: float
    points: tuple[Point, ...]
    forecast: Forecast | None
    now: datetime
    premise: str

    @property
    def spent(self) -> float:
        return self.points[-1].spent if self.points else 0.0

    @property
    def left(self) -> float:
        return max(0.0, self.budget - self.spent)

    @property
    def too_much(self) -> bool:
        """The runs under way want more than there is: rounds will go on without this client."""
        return self.forecast is not None and self.forecast.spent > self.budget

    def series(self) -> dict[str, object]:
        """For the plot: seconds since 1970, and what is left of the budget."""
        times = [point.at.timestamp() for point in self.points]
        left = [self.budget - point.spent for point in self.points]
        start = times[0] if times else self.now.timestamp()
        x, y = [start - 1, *times, self.now.timestamp()], [self.budget, *left, self.budget]
        y[-1] = self.budget - self.spent
        ahead: list[float | None] = [None] * len(x)
        if self.forecast is not None:
            ahead[-1] = y[-1]
            x.append(max(self.forecast.at.timestamp(), x[-1] + 1))
            ahead.append(self.budget - self.forecast.spent)
        now: list[float | None] = [*y] + [None] * (len(x) - len(y))
        return {
            "kind": "time",
            "unit": "ε",
            "x": x,
            "zero": True,
            "series": [
                {"label": "ε left", "values": now, "step": True, "area": True, "colour": 0},
                {"label": "forecast", "values": ahead, "dash": True, "colour": 1},
            ],
        }


@dataclass(frozen=True)
class _Ahead:
    events: tuple[PrivacyEvent, ...]
    at: datetime
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Read:
    """What a burn-down is computed from."""

    client: Client
    reserved: tuple[LedgerEntry, ...]
    ahead: _Ahead | None
    now: datetime


async def read(ctx: Context, session: AsyncSession, client: Client) -> Read:
    """The account's reservations, and what is ahead of it."""
    now = await ctx.database.now(session)
    entries = await ledger.of_account(session, client.account_id)
    reserved = tuple(entry for entry in entries if entry.kind == "reserve" and entry.event)
    return Read(client, reserved, await _ahead(session, client, entries, now), now)


async def computed(ctx: Context, read: Read) -> Burndown:
    """Seconds of the accountant's work, on a thread."""
    client = read.client
    async with ctx.heavy:
        points, forecast = await asyncio.to_thread(_computed, read.reserved, client, read.ahead)
    ahead = () if read.ahead is None else read.ahead.events
    reserved = ((entry.event or {}).get("collude") for entry in read.reserved)
    rests_on = premise((*reserved, *(event.collude for event in ahead)))
    return Burndown(
        client.budget_epsilon, client.budget_delta, points, forecast, read.now, rests_on
    )


def _events(entries: Sequence[LedgerEntry]) -> list[PrivacyEvent]:
    return [PrivacyEvent.model_validate(entry.event) for entry in entries]


def _computed(
    reserved: Sequence[LedgerEntry], client: Client, ahead: _Ahead | None
) -> tuple[tuple[Point, ...], Forecast | None]:
    delta, events, points = client.budget_delta, _events(reserved), []
    for last in _chosen(len(reserved)):
        spent = epsilon(events[: last + 1], delta)
        points.append(Point(reserved[last].at, spent))
    if ahead is None:
        return tuple(points), None
    spent = epsilon([*events, *ahead.events], delta)
    return tuple(points), Forecast(ahead.at, spent, ahead.runs)


def _chosen(count: int) -> list[int]:
    """The first and the last one, and others evenly between."""
    if count <= _POINTS:
        return list(range(count))
    return sorted({round(place * (count - 1) / (_POINTS - 1)) for place in range(_POINTS)})


async def _ahead(
    session: AsyncSession, client: Client, entries: Sequence[LedgerEntry], now: datetime
) -> _Ahead | None:
    """What all clients of the account have yet to do in runs that go on."""
    lost = {entry.reserve_id for entry in entries if entry.kind == "lost"}
    events: list[PrivacyEvent] = []
    ends, names = [now], {}
    for client_id, run in await repository.going_on(session, client.account_id):
        done = {
            entry.round_number
            for entry in entries
            if entry.kind == "reserve"
            and entry.run_id == run.id
            and entry.client_id == client_id
            and entry.id not in lost
        }
        still = spec_of(run).events(done)
        if still:
            events += still
            ends.append(now + await _left(session, run))
            names[run.id] = run.name
    return _Ahead(tuple(events), max(ends), tuple(names.values())) if events else None


async def _left(session: AsyncSession, run: Run) -> timedelta:
    """Until the run has ended, if each round takes as long as its others did (the middle one)."""
    lasted = [
        (one.published_at - one.opened_at).total_seconds()
        for one in await repository.past_rounds(session, run.id)
        if one.published_at is not None and one.opened_at is not None
    ]
    spec = spec_of(run)
    pace = statistics.median(lasted) if lasted else spec.plan.round.deadline_s
    return timedelta(seconds=pace * max(0, spec.last_round + 1 - len(lasted)))
