"""What the state machine needs to know about a round, read from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from api.db.run_models import Job, Round, Run
from api.rounds.repository import Place
from api.secure_sums.progress import Progress
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


def member_of_sum(place: Place, max_attempts: int, state: RoundState, sums: Progress) -> Member:
    """A client's standing where the sum is secure. At a step of its protocol: what it has said.
    Later there is work for those only who have shared secrets.
    """
    plain = member(place, max_attempts)
    if state is RoundState.DRAFT:
        return plain
    said = sums.said.get(place.client.id)
    if said is not None:
        group = sums.group(place)
        if group == "answered":
            return replace(plain, standing=Standing.ANSWERED, until=None, why="")
        if said[0] == "declined":
            return replace(plain, standing=Standing.OUT, until=None, why=f"declined: {said[1]}")
        if group == "pending":
            return replace(plain, standing=Standing.ANSWERING, until=None, why="")
        # Else its plain standing says why nothing more comes of it: revoked, left, quarantined.
        why = _closed(place) or plain.why
        return replace(plain, standing=Standing.OUT, until=None, why=why)
    if place.work is not None or plain.standing in (Standing.OUT, Standing.HELD):
        return plain
    if place.client.id in sums.shared:
        return plain
    why = "its site had not approved the plan when the round began"
    if place.consent != "asked":
        why = "it has shared no secrets for this sum"
    return Member(place.client.name, Standing.OUT, 0, None, why)


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
    sums: Progress | None = None,
) -> Facts:
    """``sums``: of a round whose sum is secure."""
    rules = spec.plan.round
    kind = spec.kind(row.number)
    join, report = kind == "join", kind == "report"
    # What one client says in a join or for the report needs nobody else: who posted is in.
    quorum = 1 if join or report else rules.quorum
    if sums is not None and sums.session is not None:
        quorum = sums.session.survivors
    state = RoundState(row.state)
    return Facts(
        now=now,
        quorum=quorum,
        deadline=timedelta(seconds=rules.deadline_s),
        extension=timedelta(seconds=rules.extension_s),
        max_attempts=rules.max_attempts,
        members=tuple(
            member(place, rules.max_attempts)
            if sums is None
            else member_of_sum(place, rules.max_attempts, state, sums)
            for place in places
        ),
        closes_at=row.deadline,
        extended=row.extended,
        grace_until=grace_until,
        last_round=row.number == spec.last_round,
        join=join,
        report=report,
        paused_until=run.pause_ends,
        lease_live=lease_live,
        why=why,
        created_at=row.created_at,
        secure=None if sums is None else sums.facts(spec, places),
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
