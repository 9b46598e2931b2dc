"""What somebody should see first: runs as they stand, and what needs a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.consents import repository as consents
from api.consents.repository import Asked
from api.context import Context
from api.dashboard import repository
from api.dashboard.render import eps, since
from api.dashboard.sessions import Visitor
from api.db.run_models import Run
from api.enrolments import service as enrolments
from api.events.service import ProgressView, progress
from api.metrics.books import Snapshot, Spent
from api.runs import repository as runs
from api.runs.specs import spec_of
from core.privacy.premise import NONE

NEARLY_SPENT = 0.8
_LIVE = ("running", "paused")
_ASKED, _NAMES = 50, 5
Level = Literal["act", "watch"]


@dataclass(frozen=True)
class Notice:
    """Something that a person should see; ``act``: nothing goes on without somebody."""

    level: Level
    what: str
    about: str
    link: str


@dataclass(frozen=True)
class RunRow:
    """A run in a list; ``live`` while something goes on in it."""

    id: UUID
    name: str
    state: str
    why: str
    published: int
    planned: int
    epsilon: float
    secure: bool
    created_at: datetime
    finished_at: datetime | None
    paused_until: datetime | None
    live: ProgressView | None


async def rows(
    ctx: Context, session: AsyncSession, visitor: Visitor, found: Sequence[Run]
) -> list[RunRow]:
    made = []
    for run in found:
        live: ProgressView | None = None
        if run.state in _LIVE:
            live = await progress(ctx, session, visitor.who, run)
        spec = spec_of(run)
        last = spec.last_round
        _, published, _ = await runs.progress(session, run.id, last)
        made.append(
            RunRow(
                id=run.id,
                name=run.name,
                state=run.state,
                why=run.why,
                published=published,
                planned=last + 1,
                epsilon=run.epsilon_planned,
                secure=spec.plan.aggregation == "secure",
                created_at=run.created_at,
                finished_at=run.finished_at,
                paused_until=run.pause_ends,
                live=live,
            )
        )
    return made


def share(spent: Spent) -> float:
    return spent.worst / spent.budget


async def notices(
    ctx: Context,
    session: AsyncSession,
    shown: list[RunRow],
    snapshot: Snapshot,
    now: datetime,
) -> list[Notice]:
    """The most pressing ones first."""
    found: list[Notice] = []
    for site in (await enrolments.some(ctx, session, _ASKED, None, "waiting"))[0]:
        about = "Its site has used a one-time code and waits for an administrator."
        found.append(Notice("act", f"{site.name} wants to come in", about, "/dashboard/clients"))
    for one in await repository.held(session):
        what = f"{one.client} is in quarantine in {one.run}"
        found.append(Notice("act", what, one.why, f"/dashboard/runs/{one.run_id}"))
    for row in shown:
        link = f"/dashboard/runs/{row.id}"
        if row.state == "paused" and row.paused_until is not None:
            about = f"It is cancelled unless somebody resumes it: {since(row.paused_until, now)}."
            found.append(Notice("act", f"{row.name} is paused", about, link))
            continue
        at = row.live.round if row.live else None
        late = at is not None and at.deadline is not None and at.deadline < now
        if at is not None and at.state == "open" and (at.extended or late):
            what = f"Round {at.number} of {row.name} is late"
            found.append(Notice("watch", what, at.why, link))
        if at is not None and at.outliers:
            what = f"Updates of {', '.join(at.outliers)} are unusually long"
            found.append(Notice("watch", what, f"Round {at.number} of {row.name}.", link))
    for spent in snapshot.spent:
        if share(spent) >= NEARLY_SPENT:
            rests = "" if spent.premise == NONE else " It holds on the premise of secure sums."
            about = (
                f"ε {eps(spent.worst)} of {eps(spent.budget)}, open reservations among it.{rests}"
            )
            what = f"{spent.client} has spent {share(spent):.0%} of its budget"
            found.append(Notice("watch", what, about, "/dashboard/clients"))
    found += _asked(await consents.page(session, _ASKED, None, state="asked"), now)
    if snapshot.facts is None:
        found.append(Notice("act", "The figures of clients and queues cannot be read", "", ""))
    else:
        found += _queues(snapshot)
    return sorted(found, key=lambda notice: notice.level != "act")


def _asked(waiting: list[Asked], now: datetime) -> list[Notice]:
    """One notice for each run that some sites have not spoken about yet."""
    by_run: dict[UUID, list[Asked]] = {}
    for asked in waiting:
        by_run.setdefault(asked.run.id, []).append(asked)
    found = []
    for run_id, some in by_run.items():
        names = [asked.client.name for asked in some]
        shown = ", ".join(names[:_NAMES])
        if len(names) > _NAMES:
            shown += f" and {len(names) - _NAMES} more"
        oldest = min(asked.consent.created_at for asked in some)
        about = f"{shown}; asked {since(oldest, now)}. Each site decides for itself."
        sites = "1 site has" if len(names) == 1 else f"{len(names)} sites have"
        what = f"{sites} not said yet whether to take part in {some[0].run.name}"
        found.append(Notice("watch", what, about, f"/dashboard/runs/{run_id}"))
    return found


def _queues(snapshot: Snapshot) -> list[Notice]:
    if snapshot.facts is None:
        return []
    found = []
    failed = sum(snapshot.facts.of("failed").values())
    if failed:
        what = f"{failed:.0f} jobs of workers have failed for good"
        about = "Their reasons are in the audit trail."
        found.append(Notice("watch", what, about, "/dashboard/audit?kind=job-failed"))
    age = snapshot.facts.one("outbox-age")
    if age > 60:
        what = "Messages for workers are not sent"
        about = f"The oldest waits for {age:.0f} s: is the broker there?"
        found.append(Notice("act", what, about, ""))
    return found
