"""What the state machine needs to know about a round, read from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from api.db.models import Client
from api.db.run_models import Job, Round, WorkItem
from core.federation.plan import RunSpec
from core.federation.rounds import Facts, Member, RoundEvent, RoundState, Standing

Attempts = Sequence[tuple[Client, WorkItem | None]]


def member(client: Client, work: WorkItem | None, max_attempts: int) -> Member:
    """A client's standing, from its newest attempt."""
    if work is None:
        return Member(client.name, Standing.LOST, 0, None, "no work was made yet")
    if work.state == "ready":
        return Member(client.name, Standing.WAITING, work.attempt)
    if work.state == "leased":
        return Member(client.name, Standing.LEASED, work.attempt, work.lease_expires)
    if work.state == "done":
        return Member(client.name, Standing.ACCEPTED, work.attempt)
    spent = work.state == "lost" and work.attempt >= max_attempts
    if work.state == "lost" and not spent:
        return Member(client.name, Standing.LOST, work.attempt, None, work.reason)
    why = f"{work.reason}; no attempts are left" if spent else work.reason
    return Member(client.name, Standing.OUT, work.attempt, None, why)


def gather(
    spec: RunSpec,
    row: Round,
    attempts: Attempts,
    now: datetime,
    *,
    grace_until: datetime | None = None,
    why: str = "",
    lease_live: bool = False,
) -> Facts:
    rules = spec.plan.round
    join = spec.kind(row.number) == "join"
    return Facts(
        now=now,
        quorum=1 if join else rules.quorum,  # a join waits for nobody else: who posted is in
        deadline=timedelta(seconds=rules.deadline_s),
        extension=timedelta(seconds=rules.extension_s),
        max_attempts=rules.max_attempts,
        members=tuple(member(client, work, rules.max_attempts) for client, work in attempts),
        closes_at=row.deadline,
        extended=row.extended,
        grace_until=grace_until,
        last_round=row.number == spec.last_round,
        join=join,
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
