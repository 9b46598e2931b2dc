"""The round's table: every pair of state and event, and invariants over random histories."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.federation.rounds import (
    TAKE_UPDATES,
    TERMINAL,
    Accept,
    CancelRun,
    CompleteRun,
    ExpireLease,
    Facts,
    FailRun,
    IssueWork,
    LoseOpenWork,
    Member,
    OpenNextRound,
    PublishModel,
    QueueAggregation,
    RecordUpdate,
    Reject,
    RoundEvent,
    RoundState,
    SetDeadline,
    Standing,
    Wait,
    decide,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def facts(*members: Member, **changes: object) -> Facts:
    base = Facts(
        now=NOW,
        quorum=2,
        deadline=timedelta(seconds=100),
        extension=timedelta(0),
        max_attempts=3,
        members=members,
        closes_at=NOW + timedelta(seconds=50),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def accepted(name: str) -> Member:
    return Member(name, Standing.ACCEPTED, 1)


def leased(name: str, seconds: float = 10) -> Member:
    return Member(name, Standing.LEASED, 1, NOW + timedelta(seconds=seconds))


def waiting(name: str) -> Member:
    return Member(name, Standing.WAITING, 1)


def lost(name: str, attempt: int = 1) -> Member:
    return Member(name, Standing.LOST, attempt, None, "site-not-ready")


def out(name: str) -> Member:
    return Member(name, Standing.OUT, 1, None, "plan-refused")


def test_a_start_sets_the_deadline_and_issues_work_to_all() -> None:
    found = decide(RoundState.DRAFT, RoundEvent.START, facts(lost("a", 0), lost("b", 0)))
    assert isinstance(found, Accept)
    assert found.next is RoundState.OPEN
    assert found.effects == (
        SetDeadline(NOW + timedelta(seconds=100)),
        IssueWork("a", 1),
        IssueWork("b", 1),
    )


def test_everybody_here_closes_before_the_deadline() -> None:
    found = decide(RoundState.OPEN, RoundEvent.TICK, facts(accepted("a"), accepted("b"), out("c")))
    assert isinstance(found, Accept)
    assert (found.next, found.effects) == (RoundState.CLOSING, (LoseOpenWork(),))


def test_with_quorum_it_still_waits_for_those_who_work() -> None:
    found = decide(
        RoundState.OPEN, RoundEvent.TICK, facts(accepted("a"), accepted("b"), leased("c"))
    )
    assert isinstance(found, Wait)
    assert found.until == NOW + timedelta(seconds=10)
    assert found.why == "2 of 3 updates, quorum 2; working: c; until 2026-03-01T12:00:50Z"


def test_the_deadline_with_quorum_closes() -> None:
    late = facts(accepted("a"), accepted("b"), leased("c", 99), closes_at=NOW)
    found = decide(RoundState.OPEN, RoundEvent.TICK, late)
    assert isinstance(found, Accept)
    assert found.next is RoundState.CLOSING


def test_the_deadline_below_quorum_extends_once_then_fails() -> None:
    late = facts(accepted("a"), waiting("b"), closes_at=NOW, extension=timedelta(seconds=30))
    first = decide(RoundState.OPEN, RoundEvent.TICK, late)
    assert isinstance(first, Accept)
    assert first.effects == (SetDeadline(NOW + timedelta(seconds=30), extended=True),)
    second = decide(RoundState.OPEN, RoundEvent.TICK, dataclasses.replace(late, extended=True))
    assert isinstance(second, Accept)
    assert second.next is RoundState.FAILED
    assert isinstance(second.effects[1], FailRun)
    assert "missing: b" in second.why


def test_grace_suspends_leases_and_deadlines() -> None:
    late = facts(accepted("a"), leased("b", -5), closes_at=NOW - timedelta(seconds=1))
    graced = dataclasses.replace(late, grace_until=NOW + timedelta(seconds=5))
    assert isinstance(decide(RoundState.OPEN, RoundEvent.TICK, graced), Wait)
    over = dataclasses.replace(late, grace_until=NOW)
    found = decide(RoundState.OPEN, RoundEvent.TICK, over)
    assert isinstance(found, Accept)
    assert found.effects == (ExpireLease("b"),)


def test_lost_attempts_are_issued_again_while_they_last() -> None:
    found = decide(RoundState.OPEN, RoundEvent.TICK, facts(lost("a"), lost("b", 2), waiting("c")))
    assert isinstance(found, Accept)
    assert found.effects == (IssueWork("a", 2), IssueWork("b", 3))
    last = facts(accepted("a"), Member("b", Standing.LOST, 3), accepted("c"))
    closed = decide(RoundState.OPEN, RoundEvent.TICK, last)
    assert isinstance(closed, Accept)
    assert closed.next is RoundState.CLOSING


def test_a_quorum_out_of_reach_fails_at_once() -> None:
    found = decide(RoundState.OPEN, RoundEvent.TICK, facts(accepted("a"), out("b")))
    assert isinstance(found, Accept)
    assert found.next is RoundState.FAILED
    assert "b (plan-refused)" in found.why


def test_who_is_in_quarantine_is_waited_for_only_if_the_quorum_needs_it() -> None:
    held = Member("b", Standing.HELD, 1, None, "quarantined: no noise")
    needed = decide(RoundState.OPEN, RoundEvent.TICK, facts(accepted("a"), held))
    assert isinstance(needed, Wait)
    assert "left out: b (quarantined: no noise)" in needed.why
    late = facts(accepted("a"), held, closes_at=NOW)
    failed = decide(RoundState.OPEN, RoundEvent.TICK, late)
    assert isinstance(failed, Accept)
    assert (failed.next, "missing: b (quarantined" in failed.why) == (RoundState.FAILED, True)
    enough = facts(accepted("a"), held, accepted("c"))
    closed = decide(RoundState.OPEN, RoundEvent.TICK, enough)
    assert isinstance(closed, Accept)
    assert closed.next is RoundState.CLOSING


def test_from_closing_to_the_next_round() -> None:
    closing = decide(RoundState.CLOSING, RoundEvent.TICK, facts())
    assert closing == Accept(
        RoundState.AGGREGATING, (QueueAggregation(),), "updates are being summed"
    )
    published = decide(RoundState.AGGREGATING, RoundEvent.AGGREGATED, facts())
    assert published == Accept(RoundState.PUBLISHED, (PublishModel(), OpenNextRound()))
    last = decide(RoundState.AGGREGATING, RoundEvent.AGGREGATED, facts(last_round=True))
    assert last == Accept(RoundState.PUBLISHED, (PublishModel(), CompleteRun()))
    failed = decide(RoundState.AGGREGATING, RoundEvent.AGGREGATION_FAILED, facts(why="x"))
    assert isinstance(failed, Accept)
    assert failed.next is RoundState.FAILED


def test_a_join_ends_nothing_but_itself() -> None:
    """Published, failed, out of reach, late or abandoned: no effect touches the run."""
    join = facts(join=True, last_round=True)
    done = decide(RoundState.AGGREGATING, RoundEvent.AGGREGATED, join)
    assert done == Accept(RoundState.PUBLISHED, (PublishModel(),))
    cases = [
        (RoundState.AGGREGATING, RoundEvent.AGGREGATION_FAILED, facts(join=True, why="broken")),
        (RoundState.OPEN, RoundEvent.TICK, facts(out("a"), join=True, quorum=1)),
        (RoundState.OPEN, RoundEvent.TICK, facts(waiting("a"), join=True, quorum=1, closes_at=NOW)),
        *((state, RoundEvent.ABANDON, join) for state in RoundState if state not in TERMINAL),
    ]
    for state, event, known in cases:
        found = decide(state, event, known)
        assert isinstance(found, Accept)
        assert found.next in (RoundState.FAILED, RoundState.ABANDONED)
        assert found.effects == (LoseOpenWork(),)
        assert found.why


@pytest.mark.parametrize("state", list(RoundState))
@pytest.mark.parametrize("live", [True, False])
def test_an_update_counts_in_an_open_round_with_a_live_lease_only(
    state: RoundState, live: bool
) -> None:
    found = decide(state, RoundEvent.UPDATE, facts(lease_live=live))
    if state is RoundState.OPEN and live:
        assert found == Accept(RoundState.OPEN, (RecordUpdate(),))
    elif state in (RoundState.OPEN, RoundState.DRAFT, RoundState.KEYS, RoundState.SHARES):
        assert found == Reject("lease-lost")
    else:
        assert found == Reject("round-closed")
    if live:  # what the statement that counts updates is told says the same
        assert (state in TAKE_UPDATES) == isinstance(found, Accept)


@pytest.mark.parametrize("state", sorted(TERMINAL))
@pytest.mark.parametrize("event", list(RoundEvent))
def test_nothing_leaves_a_terminal_state(state: RoundState, event: RoundEvent) -> None:
    assert isinstance(decide(state, event, facts()), Reject)


@pytest.mark.parametrize("state", list(RoundState))
def test_every_state_that_lives_can_be_abandoned(state: RoundState) -> None:
    found = decide(state, RoundEvent.ABANDON, facts())
    if state in TERMINAL:
        assert isinstance(found, Reject)
    else:
        assert isinstance(found, Accept)
        assert (found.next, found.effects[0]) == (RoundState.ABANDONED, LoseOpenWork())


members = st.lists(
    st.builds(
        Member,
        client=st.uuids().map(str),
        standing=st.sampled_from(Standing),
        attempt=st.integers(1, 3),
        until=st.none() | st.integers(-100, 100).map(lambda s: NOW + timedelta(seconds=s)),
    ),
    max_size=6,
    unique_by=lambda m: m.client,
)


@settings(deadline=None, max_examples=300)
@given(
    members=members,
    quorum=st.integers(1, 6),
    closes=st.integers(-50, 50),
    extension=st.integers(0, 1),
    extended=st.booleans(),
    grace=st.none() | st.integers(-10, 10),
    pause=st.none() | st.integers(-10, 10),
)
def test_an_open_round_never_waits_without_reason_or_end(
    members: list[Member],
    quorum: int,
    closes: int,
    extension: int,
    extended: bool,
    grace: int | None,
    pause: int | None,
) -> None:
    known = facts(
        *members,
        quorum=quorum,
        closes_at=NOW + timedelta(seconds=closes),
        extension=timedelta(seconds=extension),
        extended=extended,
        grace_until=None if grace is None else NOW + timedelta(seconds=grace),
        paused_until=None if pause is None else NOW + timedelta(seconds=pause),
    )
    found = decide(RoundState.OPEN, RoundEvent.TICK, known)
    here = len(known.of(Standing.ACCEPTED))
    assert not isinstance(found, Reject)
    if isinstance(found, Wait):
        assert found.why
        assert found.until is not None
        # Somebody's update could still come: now, or once the pause is over.
        pending = known.of(Standing.ASKED, Standing.WAITING, Standing.LEASED)
        again = [m for m in known.of(Standing.LOST) if m.attempt < known.max_attempts]
        held = known.of(Standing.HELD) if here < quorum else ()
        assert pending or held or (pause is not None and again)
        assert found.until > NOW or known.in_grace
    elif found.next is RoundState.CLOSING:
        assert here >= quorum
    elif found.next is RoundState.FAILED:
        assert here < quorum
        assert isinstance(found.effects[-1], FailRun)
    elif found.next is RoundState.ABANDONED:
        assert pause is not None
        assert pause <= 0
        assert isinstance(found.effects[-1], CancelRun)
    else:
        # It stays open only because something was done about it.
        assert found.effects
        assert not any(isinstance(effect, RecordUpdate) for effect in found.effects)
        for effect in found.effects:
            if isinstance(effect, IssueWork):
                assert pause is None
                assert effect.attempt <= known.max_attempts


def test_a_report_that_fails_completes_the_run() -> None:
    """The model is published already: out of reach, late or not summed, only the report is lost."""
    report = facts(report=True, last_round=True, quorum=1)
    cases = [
        (RoundState.AGGREGATING, RoundEvent.AGGREGATION_FAILED, report),
        (RoundState.OPEN, RoundEvent.TICK, facts(out("a"), report=True, quorum=1)),
        (RoundState.OPEN, RoundEvent.TICK, facts(waiting("a"), report=True, closes_at=NOW)),
    ]
    for state, event, known in cases:
        found = decide(state, event, known)
        assert isinstance(found, Accept)
        assert found.next is RoundState.FAILED
        assert found.effects == (LoseOpenWork(), CompleteRun())
        assert found.why
        other = decide(state, event, dataclasses.replace(known, report=False))
        assert isinstance(other, Accept)
        assert isinstance(other.effects[-1], FailRun)
    stopped = decide(RoundState.OPEN, RoundEvent.ABANDON, report)
    assert isinstance(stopped, Accept)
    assert isinstance(stopped.effects[-1], CancelRun)  # somebody stopped the run, not the round
    done = decide(RoundState.AGGREGATING, RoundEvent.AGGREGATED, report)
    assert done == Accept(RoundState.PUBLISHED, (PublishModel(), CompleteRun()))
