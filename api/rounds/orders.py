"""Orders of a round: reserved for and offered, expired, lost. Called under the round's locks.

Each function is an effect of ``core.federation.rounds`` or a part of one. An order exists only
with a reservation in the ledger, and each reservation gets exactly one outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.db.base import uuid7
from api.db.engine import ring, ring_all, topic_of_client
from api.db.outbox import announce_works
from api.db.run_models import WorkItem
from api.ledger import reservations
from api.ledger import service as ledger
from api.rounds import repository
from api.rounds.moment import Moment
from api.rounds.repository import Offer, PlaceWork
from core.errors import BudgetExceeded
from core.federation.rounds import IssueWork

log = structlog.get_logger(__name__)
_BACKOFF_LIMIT_S = 300.0
_NO_CODE = "it posted no sketch, so the run has no code for it"


async def issue(at: Moment, wanted: Sequence[IssueWork]) -> None:
    """Reserve, then offer the work; who gets no reservation is left out, with a reason. All clients
    together: a round of a thousand is opened by a handful of statements.
    """
    needs_code = at.sums is None and at.spec.kind(at.row.number) in (
        "spread", "train", "validate", "report",
    )  # fmt: skip
    coded = await at.with_code() if needs_code else set()
    asked = []
    for each in wanted:
        if needs_code and at.place(each.client).client.id not in coded:
            # The site could not train; asking it would spend its budget for nothing.
            await _leave_out(at, each, _NO_CODE)
        else:
            asked.append(each)
    reserved = await reservations.reserve(
        at.session,
        [reservations.Attempt(at.place(each.client).client, each.attempt) for each in asked],
        run_id=at.run.id,
        round_number=at.row.number,
        event=at.spec.event(at.row.number),
        planned=at.planned,
    )
    offers = []
    for each, reservation in zip(asked, reserved, strict=True):
        if isinstance(reservation, BudgetExceeded):
            await _leave_out(at, each, reservation.message)
        else:
            offers.append(_offer(at, each, reservation))
    await repository.offer(at.session, at.run.id, at.row.number, offers)
    # Those whose time has not come yet are announced by the sweeper when it has.
    now = [offer for offer in offers if offer.available_at <= at.now]
    await announce_works(at.session, [offer.id for offer in now if offer.managed], at.now)
    await ring_all(
        at.session, [topic_of_client(offer.client_id) for offer in now if not offer.managed]
    )


def _offer(at: Moment, wanted: IssueWork, reservation: UUID) -> Offer:
    place = at.place(wanted.client)
    return Offer(
        id=uuid7(),
        client_id=place.client.id,
        managed=place.client.managed,
        attempt=wanted.attempt,
        available_at=at.now + _pause(at, place.work),
        reservation_id=reservation,
    )


async def _leave_out(at: Moment, wanted: IssueWork, reason: str) -> None:
    work = WorkItem(
        id=uuid7(),
        run_id=at.run.id,
        round_number=at.row.number,
        client_id=at.place(wanted.client).client.id,
        attempt=wanted.attempt,
        available_at=at.now,
        state="excluded",
        reason=reason,
        finished_at=at.now,
    )
    at.session.add(work)
    await _told(at, "client-left-out", work)
    log.warning("client_left_out", run_id=str(at.run.id), round=at.row.number, client=wanted.client)


def _pause(at: Moment, previous: PlaceWork | None) -> timedelta:
    """Nobody waits after a lease has run out; who was not ready is asked again later and later."""
    if previous is None or previous.reason != "site-not-ready":
        return timedelta(0)
    first = at.ctx.settings.retry_backoff_s
    return timedelta(seconds=min(first * 2 ** (previous.attempt - 1), _BACKOFF_LIMIT_S))


async def expire(at: Moment, name: str) -> None:
    """Declare a lease lost, unless an update or a renewal came first."""
    client = at.place(name).client
    for work in await _open(at.session, at, client.id):
        overdue = work.lease_expires is not None and work.lease_expires <= at.now
        if work.state == "leased" and overdue:
            await lose(at, work, "the lease ended without an update")


async def lose_open(at: Moment, reason: str, client_id: UUID | None = None) -> None:
    """Withdraw every order that is still out (of one client)."""
    for work in await _open(at.session, at, client_id):
        await lose(at, work, reason)


async def _open(session: AsyncSession, at: Moment, client_id: UUID | None) -> list[WorkItem]:
    return list(await repository.lock_open_work(session, at.run.id, at.row.number, client_id))


async def announce_ready(session: AsyncSession, run_id: UUID) -> None:
    """Orders that wait in the run's open round are offered again, now."""
    for work, managed in await repository.waiting(session, run_id):
        if managed:
            work.queued_at = None  # the sweeper announces what was never announced
        else:
            await ring(session, topic_of_client(work.client_id))
    await session.flush()


async def lose(at: Moment, work: WorkItem, reason: str) -> None:
    """The attempt has ended without an update. Its reservation stays spent."""
    work.state, work.reason, work.finished_at = "lost", reason, at.now
    if work.reservation_id is None:
        raise RuntimeError(f"open work {work.id} has no reservation")
    await ledger.settle(at.session, work.reservation_id, "lost")
    await _told(at, "work-lost", work)


async def _told(at: Moment, kind: str, work: WorkItem) -> None:
    await audit.record(
        at.session,
        kind,
        None,
        run_id=work.run_id,
        round_number=work.round_number,
        client_id=work.client_id,
        work=str(work.id),
        attempt=work.attempt,
        why=work.reason,
    )
