"""Celery messages through a table: written with the row that they announce, sent after commit.

At least once. A message carries one id; the row that it names is the truth, and claiming it is
what counts, so a message too many is harmless and a lost one is sent again after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.db.engine import TOPIC_OUTBOX, Database, ring
from api.db.hub import Hub, wait
from api.db.models import Client, IdempotencyKey
from api.db.oversight_models import Consent
from api.db.run_models import Job, OutboxMessage, Round, Run, WorkItem
from api.db.secure_models import SumStep
from api.db.synthesis_models import SynthesisJob
from core import tracing
from core.wire.jobs import (
    QUEUE_COORDINATOR,
    QUEUE_SYNTHESIS,
    QUEUE_TRAIN,
    TASK_AGGREGATE,
    TASK_CONSENT,
    TASK_REPLAY,
    TASK_STEP,
    TASK_SYNTHESISE,
    TASK_TRAIN,
)

log = structlog.get_logger(__name__)
_BATCH = 100
_RESEND_LIMIT_S = 300.0
_KEEP_SENT = timedelta(days=1)
_KEEP_KEYS = timedelta(days=7)


async def _announce(session: AsyncSession, task: str, queue: str, *subjects: UUID) -> None:
    trace = _trace_of(task, queue)
    messages = [
        {"id": uuid7(), "task": task, "queue": queue, "subject": subject, "trace": trace}
        for subject in subjects
    ]
    await session.execute(insert(OutboxMessage), messages)
    await ring(session, TOPIC_OUTBOX)


def _trace_of(task: str, queue: str) -> str | None:
    """A span of the trace to which a message belongs, or of a new one. Work of sites has none."""
    if queue == QUEUE_TRAIN:
        return None
    with tracing.span(f"announce {task}"):
        return tracing.current()


async def announce_works(session: AsyncSession, work_ids: Sequence[UUID], now: datetime) -> None:
    """Tell the queue ``train`` about managed clients' work."""
    if not work_ids:
        return
    await session.execute(
        update(WorkItem)
        .where(WorkItem.id.in_(work_ids))
        .values(queued_at=now, queued_count=WorkItem.queued_count + 1)
        .execution_options(synchronize_session=False)
    )
    await _announce(session, TASK_TRAIN, QUEUE_TRAIN, *work_ids)


async def announce_consent(session: AsyncSession, consent: Consent, now: datetime) -> None:
    """Tell the queue ``train`` that a managed client's plan awaits its site's word.

    Workers of protocol 1 drop that message unread. Who has not answered the first one gets another
    that they do know, about work of this id: their claim is understood, that of a newer one refused
    (``api.work.endpoints``).
    """
    consent.queued_at, consent.queued_count = now, (consent.queued_count or 0) + 1
    await _announce(session, TASK_CONSENT, QUEUE_TRAIN, consent.id)
    if consent.queued_count > 1:
        await _announce(session, TASK_TRAIN, QUEUE_TRAIN, consent.id)


async def announce_steps(session: AsyncSession, step_ids: Sequence[UUID], now: datetime) -> None:
    """Tell the queue ``train`` about managed clients' steps of secure sums."""
    if not step_ids:
        return
    await session.execute(
        update(SumStep)
        .where(SumStep.id.in_(step_ids))
        .values(queued_at=now, queued_count=SumStep.queued_count + 1)
        .execution_options(synchronize_session=False)
    )
    await _announce(session, TASK_STEP, QUEUE_TRAIN, *step_ids)


async def announce_job(session: AsyncSession, job: Job, now: datetime) -> None:
    """Tell the queue ``coordinator`` about a job."""
    job.queued_at, job.queued_count = now, (job.queued_count or 0) + 1
    task = TASK_REPLAY if job.kind == "replay" else TASK_AGGREGATE
    await _announce(session, task, QUEUE_COORDINATOR, job.id)


async def announce_file(session: AsyncSession, job: SynthesisJob, now: datetime) -> None:
    """Tell the queue ``synthesis`` about a file of rows."""
    job.queued_at, job.queued_count = now, (job.queued_count or 0) + 1
    await _announce(session, TASK_SYNTHESISE, QUEUE_SYNTHESIS, job.id)


async def announce_again(session: AsyncSession, now: datetime, resend_s: float) -> int:
    """Announce work and jobs that nobody claimed since; the pause doubles up to five minutes.

    Not while a message about them still waits to be sent: then the broker is away.
    """
    works = await session.execute(
        select(WorkItem.id, WorkItem.queued_at, WorkItem.queued_count)
        .join(Client, Client.id == WorkItem.client_id)
        .join(
            Round,
            (Round.run_id == WorkItem.run_id) & (Round.number == WorkItem.round_number),
        )
        .join(Run, Run.id == WorkItem.run_id)
        .where(
            Client.managed,
            Run.state != "paused",
            Round.state == "open",
            WorkItem.state == "ready",
            WorkItem.available_at <= now,
            ~exists().where(OutboxMessage.subject == WorkItem.id, OutboxMessage.sent_at.is_(None)),
        )
        .with_for_update(of=WorkItem, key_share=True, skip_locked=True)
    )
    again = [work_id for work_id, queued_at, sent in works if due(queued_at, sent, now, resend_s)]
    await announce_works(session, again, now)
    count = len(again)
    jobs = await session.scalars(
        select(Job)
        .join(Round, (Round.run_id == Job.run_id) & (Round.number == Job.round_number))
        .where(
            or_(Job.kind == "replay", Round.state == "aggregating"),
            Job.state == "ready",
            Job.available_at <= now,
            ~exists().where(OutboxMessage.subject == Job.id, OutboxMessage.sent_at.is_(None)),
        )
        .with_for_update(of=Job, key_share=True, skip_locked=True)
    )
    for job in jobs.all():
        if due(job.queued_at, job.queued_count, now, resend_s):
            await announce_job(session, job, now)
            count += 1
    files = await session.scalars(
        select(SynthesisJob)
        .where(
            SynthesisJob.state == "ready",
            SynthesisJob.available_at <= now,
            ~exists().where(
                OutboxMessage.subject == SynthesisJob.id, OutboxMessage.sent_at.is_(None)
            ),
        )
        .with_for_update(key_share=True, skip_locked=True)
    )
    for file in files.all():
        if due(file.queued_at, file.queued_count, now, resend_s):
            await announce_file(session, file, now)
            count += 1
    return count


def due(queued_at: datetime | None, count: int, now: datetime, resend_s: float) -> bool:
    """Shall it be announced (again)? The pause doubles, up to five minutes."""
    if queued_at is None:
        return True
    pause = min(resend_s * 2.0 ** min(count - 1, 16), max(resend_s, _RESEND_LIMIT_S))
    return queued_at + timedelta(seconds=pause) <= now


def _sending(row: OutboxMessage) -> AbstractContextManager[object]:
    """The span of a message that belongs to a trace."""
    if row.trace is None:
        return nullcontext()
    about = {
        "messaging.system": "celery",
        "messaging.destination.name": row.queue,
        "messaging.message.id": str(row.id),
        "fhv.subject": str(row.subject),
    }
    return tracing.span(f"send {row.task}", "producer", about, parent=row.trace)


async def sweep_up(session: AsyncSession, now: datetime) -> None:
    """Forget messages that were sent long ago, and keys of requests that nobody repeats now."""
    await session.execute(
        delete(IdempotencyKey).where(IdempotencyKey.created_at < now - _KEEP_KEYS)
    )
    await session.execute(delete(OutboxMessage).where(OutboxMessage.sent_at < now - _KEEP_SENT))


class Dispatcher:
    """Sends what the outbox holds. Several replicas share the work (SKIP LOCKED)."""

    def __init__(self, database: Database, hub: Hub, broker_url: str | None, poll_s: float) -> None:
        self._database = database
        self._hub = hub
        self._poll_s = poll_s
        self._celery: Celery | None = None
        if broker_url is not None:
            self._celery = Celery("fedhypevae-api", broker=broker_url, set_as_current=False)
            self._celery.conf.update(
                task_serializer="json",
                accept_content=["json"],
                task_ignore_result=True,
                broker_connection_timeout=3,
                broker_transport_options={
                    "socket_connect_timeout": 3,
                    "socket_timeout": 5,
                },
            )

    async def run(self) -> None:
        """Until cancelled. A broker that is away is tried again; the rows wait."""
        with self._hub.subscribe(TOPIC_OUTBOX) as bell:
            while True:
                try:
                    while await self.dispatch():
                        pass
                except (OperationalError, OSError) as error:
                    log.warning("broker_unreachable", error=type(error).__name__)
                except Exception:
                    log.exception("dispatch_failed")
                await wait(bell, self._poll_s)

    async def dispatch(self) -> int:
        """Send one batch; rows are marked in the transaction that holds their locks."""
        if self._celery is None:
            return 0
        async with self._database.write() as session:
            rows = (
                await session.scalars(
                    select(OutboxMessage)
                    .where(OutboxMessage.sent_at.is_(None))
                    .order_by(OutboxMessage.id)
                    .limit(_BATCH)
                    .with_for_update(skip_locked=True)
                )
            ).all()
            if not rows:
                return 0
            await asyncio.to_thread(self._send, list(rows))
            await session.execute(
                update(OutboxMessage)
                .where(OutboxMessage.id.in_([row.id for row in rows]))
                .values(sent_at=func.clock_timestamp())
            )
            return len(rows)

    def _send(self, rows: list[OutboxMessage]) -> None:
        if self._celery is None:
            raise RuntimeError("no broker is configured")
        for row in rows:
            with _sending(row):
                self._celery.send_task(
                    row.task,
                    args=[str(row.subject)],
                    queue=row.queue,
                    task_id=str(row.id),
                    serializer="json",
                    ignore_result=True,
                    retry=True,
                    retry_policy={"max_retries": 1, "interval_start": 0.1},
                    headers=tracing.headers(),
                )

    async def reachable(self) -> bool:
        """Does the broker answer? (True without a broker: nothing is expected of it.)"""
        celery = self._celery
        if celery is None:
            return True

        def ask() -> None:
            with celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=3, interval_start=0)

        try:
            await asyncio.to_thread(ask)
        except (OperationalError, OSError):
            return False
        return True

    def close(self) -> None:
        if self._celery is not None:
            self._celery.close()
