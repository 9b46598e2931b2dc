"""Orders of a round: reserved for and offered, expired, lost. Called under the round's locks.

Each function is an effect of ``core.federation.rounds`` or a part of one. An order exists only
with a reservation in the ledger, and each reservation gets exactly one outcome.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.db.base import uuid7
from api.db.engine import ring, topic_of_client
from api.db.outbox import announce_work
from api.db.run_models import WorkItem
from api.ledger import service as ledger
from api.rounds import repository
from api.rounds.moment import Moment
from api.rounds.repository import PlaceWork
from core.errors import BudgetExceeded

log = structlog.get_logger(__name__)
_BACKOFF_LIMIT_S = 300.0
_NO_CODE = "it posted no sketch, so the run has no code for it"


async def issue(at: Moment, name: str, attempt: int) -> None:
    """Reserve, then offer the work; without a reservation the client is left out, with a reason."""
    place = at.place(name)
    client = place.client
    work = WorkItem(
        id=uuid7(),
        run_id=at.run.id,
        round_number=at.row.number,
        client_id=client.id,
        attempt=attempt,
        available_at=at.now + _pause(at, place.work),
        state="ready",
    )
    needs_code = at.spec.kind(at.row.number) in ("spread", "train", "validate")
    if needs_code and client.id not in await at.with_code():
        # The site could not train; asking it would spend its budget for nothing.
        await _leave_out(at, work, name, _NO_CODE)
        return
    try:
        reservation = await ledger.reserve(
            at.session,
            client,
            run_id=at.run.id,
            round_number=at.row.number,
            attempt=attempt,
            event=at.spec.event(at.row.number),
            planned=at.planned,
        )
    except BudgetExceeded as error:
        await _leave_out(at, work, name, error.message)
        return
    work.reservation_id = reservation.id
    at.session.add(work)
    await at.session.flush()
    if client.managed and work.available_at > at.now:
        return  # announced by the sweeper when its time has come
    if client.managed:
        await announce_work(at.session, work, at.now)
    else:
        await ring(at.session, topic_of_client(client.id))


async def _leave_out(at: Moment, work: WorkItem, name: str, reason: str) -> None:
    work.state, work.reason, work.finished_at = "excluded", reason, at.now
    at.session.add(work)
    await _told(at, "client-left-out", work)
    log.warning("client_left_out", run_id=str(at.run.id), round=at.row.number, client=name)


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
