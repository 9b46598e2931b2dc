"""Carries out what ``core.federation.rounds.decide`` says, one transaction a step.

A step locks the run and its newest round, gathers the facts, decides, applies the effects and
stores the next state. Killed at any line, the transaction is gone and the next step decides the
same again. Locks are taken in one order everywhere: run, round, work, account.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import structlog

from api import audit
from api.auth import Principal
from api.context import Context
from api.db.base import uuid7
from api.db.outbox import announce_job
from api.db.run_models import Job, Round, Run
from api.rounds import moment, orders
from api.rounds.facts import event_of, gather
from api.rounds.moment import Moment
from api.runs import repository as runs
from api.secure_sums import asking
from api.webhooks import kinds as webhooks
from api.webhooks.kinds import stuck_key
from core.federation import rounds
from core.federation.rounds import RoundEvent, RoundState
from core.wire.messages import AggregateResult

log = structlog.get_logger(__name__)


async def step(ctx: Context, run_id: UUID, grace_until: datetime | None = None) -> bool:
    """Move a run's live round one step on. True: something changed, call again."""
    async with ctx.database.write() as session:
        run = await runs.locked(session, run_id, skip=True)
        if run is None:
            return False
        at = await moment.newest(ctx, session, run)
        if at is None or at.row.state in rounds.TERMINAL:
            return False
        event, why = event_of(at.row, at.job)
        facts = gather(
            at.spec, run, at.row, at.places, at.now, grace_until=grace_until, why=why, sums=at.sums
        )
        decision = _possible(at, rounds.decide(RoundState(at.row.state), event, facts))
        if isinstance(decision, rounds.Accept):
            await _apply(at, decision)
            return True
        if isinstance(decision, rounds.Wait) and at.row.why != decision.why:
            at.row.why = decision.why
        return False


def _possible(at: Moment, decision: rounds.Decision) -> rounds.Decision:
    """A sum that no grid fits fails its round: it would be tried for ever."""
    for effect in decision.effects if isinstance(decision, rounds.Accept) else ():
        if isinstance(effect, rounds.AskStep) and effect.step == "keys":
            try:
                asking.session_for(at, effect)
            except ValueError as error:
                why = f"no secure sum of {len(effect.clients)} clients is possible: {error}"
                effects = (rounds.LoseOpenWork(), rounds.FailRun(why))
                return rounds.Accept(RoundState.FAILED, effects, why)
    return decision


async def abandon(at: Moment, why: str, who: Principal) -> None:
    """Stop the live round, and with it its run unless that was completed; else change nothing."""
    facts = gather(at.spec, at.run, at.row, at.places, at.now, why=why, sums=at.sums)
    decision = rounds.decide(RoundState(at.row.state), RoundEvent.ABANDON, facts)
    if isinstance(decision, rounds.Accept):
        await _apply(at, decision, who)


async def _apply(at: Moment, decision: rounds.Accept, who: Principal | None = None) -> None:
    row, now = at.row, at.now
    before = row.state
    row.state, row.why = decision.next.value, decision.why
    if decision.next is RoundState.OPEN and before != RoundState.OPEN:
        row.opened_at = now
    if decision.next is not RoundState.OPEN and before == RoundState.OPEN:
        row.closed_at = now
    issue = [effect for effect in decision.effects if isinstance(effect, rounds.IssueWork)]
    for effect in decision.effects:
        if not isinstance(effect, rounds.IssueWork):
            await _carry_out(at, effect)
    if issue:
        await orders.issue(at, issue)
    await at.session.flush()
    if before != row.state:
        log.info("round_moved", run_id=str(row.run_id), round=row.number, state=row.state)
        await audit.record(
            at.session,
            "round-moved",
            who,
            run_id=row.run_id,
            round_number=row.number,
            state=row.state,
            why=row.why,
        )


async def _carry_out(at: Moment, effect: rounds.Effect) -> None:
    match effect:
        case rounds.SetDeadline(until, extended):
            at.row.deadline = until
            at.row.extended = at.row.extended or extended
            if extended:
                await _tell_extended(at)
        case rounds.ExpireLease(client):
            await orders.expire(at, client)
        case rounds.LoseOpenWork():
            await orders.lose_open(at, "the round closed before an update came")
        case rounds.AskStep():
            await asking.ask(at, effect)
        case rounds.KeepTranscript():
            await asking.keep_transcript(at)
        case rounds.QueueAggregation():
            await _queue_aggregation(at)
        case rounds.PublishModel():
            await _publish(at)
        case rounds.OpenNextRound():
            # The finished round leaves the index of live rounds before the next one enters it.
            await at.session.flush()
            at.session.add(Round(run_id=at.run.id, number=at.row.number + 1, state="draft"))
        case rounds.CompleteRun():
            await _end(at, "completed", "")
        case rounds.FailRun(why):
            await _end(at, "failed", f"round {at.row.number}: {why}")
        case rounds.CancelRun(why):
            await _end(at, "cancelled", why)
        case rounds.IssueWork() | rounds.RecordUpdate():
            raise RuntimeError(f"{effect} is not carried out one by one, here")


async def _tell_extended(at: Moment) -> None:
    row, why = at.row, "extended"
    await webhooks.tell(
        at.session,
        "round-stuck",
        key=stuck_key(row.run_id, row.number, why),
        see=f"/v1/runs/{row.run_id}/rounds/{row.number}",
        run_id=row.run_id,
        round=row.number,
        state=row.state,
        why=why,
    )


async def _end(at: Moment, state: str, why: str) -> None:
    end_run(at.run, state, why, at.now)
    await audit.record(at.session, f"run-{state}", None, run_id=at.run.id, why=why)


def end_run(run: Run, state: str, why: str, now: datetime) -> None:
    """For good. A pause ends with it."""
    run.state, run.why, run.finished_at = state, why, now
    run.paused_at, run.pause_ends = None, None
    log.info("run_ended", run_id=str(run.id), state=state, why=why)


async def _queue_aggregation(at: Moment) -> None:
    job = Job(
        id=uuid7(),
        kind="aggregate",
        run_id=at.run.id,
        round_number=at.row.number,
        available_at=at.now,
        state="ready",
    )
    at.session.add(job)
    await at.session.flush()
    await announce_job(at.session, job, at.now)


async def _publish(at: Moment) -> None:
    if at.job is None or at.job.result is None:
        raise RuntimeError(f"round {at.row.number} has no result to publish")
    result = AggregateResult.model_validate(at.job.result)
    at.row.frame_digest = result.frame.digest
    at.row.weights_digest = result.weights.digest
    at.row.optimiser_digest = result.optimiser_digest
    at.row.published_at = at.now
    await audit.record(
        at.session,
        "model-published",
        None,
        run_id=at.run.id,
        round_number=at.row.number,
        frame=result.frame.digest,
        weights=result.weights.digest,
    )
