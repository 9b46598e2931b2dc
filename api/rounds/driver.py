"""Carries out what ``core.federation.rounds.decide`` says, one transaction a step.

A step locks the run and its newest round, gathers the facts, decides, applies the effects and
stores the next state. Killed at any line, the transaction is gone and the next step decides the
same again. Locks are taken in one order everywhere: run, round, work, account.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Context
from api.db.base import uuid7
from api.db.engine import ring, topic_of_client
from api.db.models import Client
from api.db.outbox import announce_job, announce_work
from api.db.run_models import Job, Round, Run, WorkItem
from api.ledger import service as ledger
from api.problems import NotFound
from api.rounds import repository
from api.rounds.facts import Attempts, event_of, gather
from api.runs import repository as runs
from core.errors import BudgetExceeded
from core.federation import rounds
from core.federation.plan import RunSpec
from core.federation.rounds import RoundEvent, RoundState
from core.wire.messages import AggregateResult

log = structlog.get_logger(__name__)
_BACKOFF_LIMIT_S = 300.0


@dataclass
class Step:
    """One round under its locks, and what is known about it."""

    ctx: Context
    session: AsyncSession
    run: Run
    row: Round
    spec: RunSpec
    now: datetime
    attempts: Attempts
    job: Job | None

    def client(self, name: str) -> tuple[Client, WorkItem | None]:
        return next(pair for pair in self.attempts if pair[0].name == name)


async def step(ctx: Context, run_id: UUID, grace_until: datetime | None = None) -> bool:
    """Move a run's live round one step on. True: something changed, call again."""
    async with ctx.database.write() as session:
        run = await runs.locked(session, run_id, skip=True)
        if run is None:
            return False
        here = await _here(ctx, session, run)
        if here is None or here.row.state in rounds.TERMINAL:
            return False
        event, why = event_of(here.row, here.job)
        facts = gather(
            here.spec, here.row, here.attempts, here.now, grace_until=grace_until, why=why
        )
        decision = rounds.decide(RoundState(here.row.state), event, facts)
        if isinstance(decision, rounds.Accept):
            await _apply(here, decision)
            return True
        if isinstance(decision, rounds.Wait) and here.row.why != decision.why:
            here.row.why = decision.why
        return False


async def abandon(session: AsyncSession, ctx: Context, run_id: UUID) -> Run:
    """Stop a run for good. A run that has ended stays as it is, but for a join under way."""
    run = await runs.locked(session, run_id)
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    here = await _here(ctx, session, run)
    why = "stopped by the operator"
    if here is None:
        if run.state == "draft":
            run.state, run.why, run.finished_at = "failed", why, await ctx.database.now(session)
        return run
    facts = gather(here.spec, here.row, here.attempts, here.now, why=why)
    decision = rounds.decide(RoundState(here.row.state), RoundEvent.ABANDON, facts)
    if isinstance(decision, rounds.Accept):
        await _apply(here, decision)
    return run


async def _here(ctx: Context, session: AsyncSession, run: Run) -> Step | None:
    row = await repository.newest(session, run.id, lock=True)
    if row is None:
        return None
    spec = RunSpec.model_validate(run.spec)
    join = spec.kind(row.number) == "join"
    return Step(
        ctx=ctx,
        session=session,
        run=run,
        row=row,
        spec=spec,
        now=await ctx.database.now(session),
        attempts=await repository.latest_attempts(session, run.id, row.number, join=join),
        job=await repository.job_of(session, run.id, row.number),
    )


async def _apply(here: Step, decision: rounds.Accept) -> None:
    row, now = here.row, here.now
    before = row.state
    row.state, row.why = decision.next.value, decision.why
    if decision.next is RoundState.OPEN and before == RoundState.DRAFT:
        row.opened_at = now
    if decision.next is not RoundState.OPEN and before == RoundState.OPEN:
        row.closed_at = now
    for effect in decision.effects:
        await _carry_out(here, effect)
    await here.session.flush()
    if before != row.state:
        log.info("round_moved", run_id=str(row.run_id), round=row.number, state=row.state)


async def _carry_out(here: Step, effect: rounds.Effect) -> None:
    match effect:
        case rounds.SetDeadline(at, extended):
            here.row.deadline = at
            here.row.extended = here.row.extended or extended
        case rounds.IssueWork(client, attempt):
            await _issue(here, client, attempt)
        case rounds.ExpireLease(client):
            await _expire(here, client)
        case rounds.LoseOpenWork():
            await _lose_open_work(here)
        case rounds.QueueAggregation():
            await _queue_aggregation(here)
        case rounds.PublishModel():
            _publish(here)
        case rounds.OpenNextRound():
            # The finished round leaves the index of live rounds before the next one enters it.
            await here.session.flush()
            here.session.add(Round(run_id=here.run.id, number=here.row.number + 1, state="draft"))
        case rounds.CompleteRun():
            here.run.state, here.run.why, here.run.finished_at = "completed", "", here.now
            log.info("run_completed", run_id=str(here.run.id))
        case rounds.FailRun(why):
            why = f"round {here.row.number}: {why}"
            here.run.state, here.run.why, here.run.finished_at = "failed", why, here.now
            log.warning("run_failed", run_id=str(here.run.id), why=why)
        case rounds.RecordUpdate():
            raise RuntimeError("updates are recorded by api.updates, not by the driver")


async def _issue(here: Step, name: str, attempt: int) -> None:
    """Reserve, then offer the work; without a reservation the client is left out, with a reason."""
    client, previous = here.client(name)
    work = WorkItem(
        id=uuid7(),
        run_id=here.run.id,
        round_number=here.row.number,
        client_id=client.id,
        attempt=attempt,
        available_at=here.now + _pause(here, previous),
        state="ready",
    )
    needs_code = here.spec.kind(here.row.number) in ("spread", "train", "validate")
    if needs_code and client.id not in await repository.with_code(here.session, here.run.id):
        # The site could not train; asking it would spend its budget for nothing.
        await _leave_out(here, work, name, "it posted no sketch, so the run has no code for it")
        return
    try:
        reservation = await ledger.reserve(
            here.session,
            client,
            run_id=here.run.id,
            round_number=here.row.number,
            attempt=attempt,
            event=here.spec.event(here.row.number),
        )
    except BudgetExceeded as error:
        await _leave_out(here, work, name, error.message)
        return
    work.reservation_id = reservation.id
    here.session.add(work)
    await here.session.flush()
    if client.managed and work.available_at > here.now:
        return  # announced by the sweeper when its time has come
    if client.managed:
        await announce_work(here.session, work, here.now)
    else:
        await ring(here.session, topic_of_client(client.id))


async def _leave_out(here: Step, work: WorkItem, name: str, reason: str) -> None:
    work.state, work.reason, work.finished_at = "excluded", reason, here.now
    here.session.add(work)
    log.warning("client_left_out", run_id=str(here.run.id), round=here.row.number, client=name)


def _pause(here: Step, previous: WorkItem | None) -> timedelta:
    """Nobody waits after a lease has run out; who was not ready is asked again later and later."""
    if previous is None or previous.reason != "site-not-ready":
        return timedelta(0)
    first = here.ctx.settings.retry_backoff_s
    return timedelta(seconds=min(first * 2 ** (previous.attempt - 1), _BACKOFF_LIMIT_S))


async def _expire(here: Step, name: str) -> None:
    """Declare a lease lost, unless an update or a renewal came first."""
    client, _ = here.client(name)
    for work in await repository.lock_open_work(here.session, here.run.id, here.row.number):
        overdue = work.lease_expires is not None and work.lease_expires <= here.now
        if work.client_id == client.id and work.state == "leased" and overdue:
            await _lose(here, work, "the lease ended without an update")


async def _lose_open_work(here: Step) -> None:
    for work in await repository.lock_open_work(here.session, here.run.id, here.row.number):
        await _lose(here, work, "the round closed before an update came")


async def _lose(here: Step, work: WorkItem, reason: str) -> None:
    work.state, work.reason, work.finished_at = "lost", reason, here.now
    if work.reservation_id is None:
        raise RuntimeError(f"open work {work.id} has no reservation")
    await ledger.settle(here.session, work.reservation_id, "lost")


async def _queue_aggregation(here: Step) -> None:
    job = Job(
        id=uuid7(),
        kind="aggregate",
        run_id=here.run.id,
        round_number=here.row.number,
        available_at=here.now,
        state="ready",
    )
    here.session.add(job)
    await here.session.flush()
    await announce_job(here.session, job, here.now)


def _publish(here: Step) -> None:
    if here.job is None or here.job.result is None:
        raise RuntimeError(f"round {here.row.number} has no result to publish")
    result = AggregateResult.model_validate(here.job.result)
    here.row.frame_digest = result.frame.digest
    here.row.weights_digest = result.weights.digest
    here.row.optimiser_digest = result.optimiser_digest
    here.row.published_at = here.now
