"""What the state machine needs to know about a round, read from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from api.db.run_models import Job, Round, Run
from api.rounds.repository import Place
from core.federation.plan import RunSpec
from core.federation.rounds import Facts, Member, RoundEvent, RoundState, Standing


def member(place: Place, max_attempts: int) -> Member:
    """A client's standing: what counts already, what forbids more, then its newest attempt."""
    client, work = place.client, place.work
    attempt = 0 if work is None else work.attempt
    if work is not None and work.state == "done":
        return Member(client.name, Standing.ACCEPTED, attempt)
    if why := _closed(place):
        return Member(client.name, Standing.OUT, attempt, None, why)
    if place.seat.quarantined_at is not None:
        return Member(client.name, Standing.HELD, attempt, None, "quarantined")
    if work is None:
        if place.consent == "asked":
            return Member(client.name, Standing.ASKED)
        return Member(client.name, Standing.LOST, 0, None, "no work was made yet")
    if work.state == "ready":
        return Member(client.name, Standing.WAITING, attempt)
    if work.state == "leased":
        return Member(client.name, Standing.LEASED, attempt, work.lease_expires)
    spent = work.state == "lost" and attempt >= max_attempts
    if work.state == "lost" and not spent:
        return Member(client.name, Standing.LOST, attempt, None, work.reason)
    why = f"{work.reason}; no attempts are left" if spent else work.reason
    return Member(client.name, Standing.OUT, attempt, None, why)


def _closed(place: Place) -> str:
    """Why this client gets no more work in the run; empty if nothing forbids it."""
    if place.client.revoked_at is not None:
        return "revoked"
    if place.seat.left_at is not None:
        return "left the run"
    if place.consent == "refused":
        return "its site refused the plan"  # why, is not for the run's other clients
    return ""


def gather(
    spec: RunSpec,
    run: Run,
    row: Round,
    places: Sequence[Place],
    now: datetime,
    *,
    grace_until: datetime | None = None,
    why: str = "",
    lease_live: bool = False,
) -> Facts:
    rules = spec.plan.round
    kind = spec.kind(row.number)
    join, report = kind == "join", kind == "report"
    return Facts(
        now=now,
        # What one client says in a join or for the report needs nobody else: who posted is in.
        quorum=1 if join or report else rules.quorum,
        deadline=timedelta(seconds=rules.deadline_s),
        extension=timedelta(seconds=rules.extension_s),
        max_attempts=rules.max_attempts,
        members=tuple(member(place, rules.max_attempts) for place in places),
        closes_at=row.deadline,
        extended=row.extended,
        grace_until=grace_until,
        last_round=row.number == spec.last_round,
        join=join,
        report=report,
        paused_until=run.pause_ends,
        lease_live=lease_live,
        why=why,
    )


def event_of(row: Round, job: Job | None) -> tuple[RoundEvent, str]:
    """What drives the round now, and the words that go with it."""
    if row.state == RoundState.DRAFT:
        return RoundEvent.START, ""
    if row.state != RoundState.AGGREGATING or job is None:
        return RoundEvent.TICK, ""
    if job.state == "done":
        return RoundEvent.AGGREGATED, ""
    if job.state == "failed":
        return RoundEvent.AGGREGATION_FAILED, job.reason
    if job.state == "leased":
        return RoundEvent.TICK, f"a worker sums the updates (attempt {job.attempt})"
    retry = f" after {job.reason}" if job.reason else ""
    return RoundEvent.TICK, f"the sum waits for a worker of the queue coordinator{retry}"
