"""The whole transition table, exhaustively: every state, event and combination of facts.

A grid of small facts (two clients in every pair of standings, early and late leases, before and
after the deadline, extended or not, in grace, paused, last round, join) is decided and compared
with what is allowed from that state by that event. Nothing outside of it may ever happen.
Rounds whose sum is secure have a table of their own: test_secure_round_table.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from core.federation.rounds import (
    TERMINAL,
    Accept,
    CancelRun,
    CompleteRun,
    Effect,
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
BEFORE, AFTER = NOW - timedelta(seconds=5), NOW + timedelta(seconds=5)
S, E = RoundState, RoundEvent

# (state, event) -> where it may lead. Whatever is not here is refused, whatever the facts.
ALLOWED: dict[tuple[RoundState, RoundEvent], set[RoundState]] = {
    (S.DRAFT, E.START): {S.OPEN, S.ABANDONED},
    (S.DRAFT, E.ABANDON): {S.ABANDONED},
    (S.OPEN, E.UPDATE): {S.OPEN},
    (S.OPEN, E.TICK): {S.OPEN, S.CLOSING, S.FAILED, S.ABANDONED},
    (S.OPEN, E.ABANDON): {S.ABANDONED},
    (S.CLOSING, E.TICK): {S.AGGREGATING},
    (S.CLOSING, E.ABANDON): {S.ABANDONED},
    (S.AGGREGATING, E.AGGREGATED): {S.PUBLISHED},
    (S.AGGREGATING, E.AGGREGATION_FAILED): {S.FAILED},
    (S.AGGREGATING, E.ABANDON): {S.ABANDONED},
    (S.AGGREGATING, E.TICK): set(),  # it only waits
}
# Which effects may come with a step from one state into another.
EFFECTS: dict[tuple[RoundState, RoundState], set[type]] = {
    (S.DRAFT, S.OPEN): {SetDeadline, IssueWork},
    (S.OPEN, S.OPEN): {RecordUpdate, SetDeadline, IssueWork, ExpireLease},
    (S.OPEN, S.CLOSING): {LoseOpenWork},
    (S.CLOSING, S.AGGREGATING): {QueueAggregation},
    (S.AGGREGATING, S.PUBLISHED): {PublishModel, OpenNextRound, CompleteRun},
}
ENDS = {S.FAILED: {LoseOpenWork, FailRun}, S.ABANDONED: {LoseOpenWork, CancelRun}}


def _members() -> Iterator[tuple[Member, ...]]:
    one = [
        Member("a", standing, attempt, until)
        for standing in Standing
        for attempt in ((0, 1, 2) if standing is Standing.LOST else (1,))
        for until in ((BEFORE, AFTER) if standing is Standing.LEASED else (None,))
    ]
    yield ()
    for first in one:
        yield (first,)
    for first, second in itertools.combinations_with_replacement(one, 2):
        yield (first, Member("b", second.standing, second.attempt, second.until))


def _grid() -> Iterator[Facts]:
    flags = itertools.product(
        list(_members()), (1, 2), (BEFORE, AFTER), (False, True), (0, 30),
        (None, AFTER), (None, BEFORE, AFTER), ((False, False), (True, False), (False, True)),
        (False, True),
    )  # fmt: skip
    for members, quorum, closes, extended, extension, grace, pause, (last, join), live in flags:
        yield Facts(
            now=NOW,
            quorum=quorum,
            deadline=timedelta(seconds=100),
            extension=timedelta(seconds=extension),
            max_attempts=2,
            members=members,
            closes_at=closes,
            extended=extended,
            grace_until=grace,
            paused_until=None if join else pause,  # a completed run cannot be paused
            last_round=last,
            join=join,
            lease_live=live,
            why="because",
        )


GRID = list(_grid())
# Steps of secure sums: no round of a plain one is ever in them.
PLAIN = [state for state in RoundState if state not in (S.KEYS, S.SHARES, S.CONFIRMING, S.OPENING)]


@pytest.mark.parametrize("event", list(RoundEvent))
@pytest.mark.parametrize("state", PLAIN)
def test_nothing_happens_that_the_table_does_not_allow(
    state: RoundState, event: RoundEvent
) -> None:
    allowed = ALLOWED.get((state, event))
    seen: set[RoundState] = set()
    for facts in GRID:
        found = decide(state, event, facts)
        assert decide(state, event, facts) == found  # a step that is repeated decides the same
        if allowed is None:
            assert isinstance(found, Reject)
        elif isinstance(found, Accept):
            assert found.next in allowed, facts
            seen.add(found.next)
            _check_effects(state, found, facts)
        elif isinstance(found, Wait):
            assert found.why
            assert (found.until is None) == (state is S.AGGREGATING)  # its jobs have the leases
    if allowed is not None:
        assert seen == allowed  # each of them is reached, so none is there for show


def _check_effects(state: RoundState, found: Accept, facts: Facts) -> None:
    kinds = {type(effect) for effect in found.effects}
    assert kinds <= ENDS.get(found.next, EFFECTS.get((state, found.next), set())), found
    if found.next is not state:
        assert LoseOpenWork in kinds or found.next in (S.OPEN, S.AGGREGATING, S.PUBLISHED)
    if facts.join:  # a join ends nothing but itself
        assert not kinds & {FailRun, CancelRun, CompleteRun, OpenNextRound}
    elif found.next in ENDS:
        assert kinds & {FailRun, CancelRun}
    if found.next is S.CLOSING:
        assert len(facts.of(Standing.ACCEPTED)) >= facts.quorum
    if facts.paused_until is not None:  # a paused run hands out nothing
        assert not kinds & {IssueWork, SetDeadline}
    if facts.in_grace:  # nobody is declared late
        assert ExpireLease not in kinds
    for effect in found.effects:
        _check_effect(effect, facts)


def _check_effect(effect: Effect, facts: Facts) -> None:
    standing = {member.client: member for member in facts.members}
    if isinstance(effect, IssueWork):  # never beside another attempt, an update or a refusal
        member = standing[effect.client]
        assert member.standing is Standing.LOST
        assert effect.attempt <= facts.max_attempts
    if isinstance(effect, ExpireLease):
        member = standing[effect.client]
        assert member.standing is Standing.LEASED
        assert member.until is not None
        assert member.until <= facts.now
    if isinstance(effect, SetDeadline):
        assert effect.at > facts.now


@pytest.mark.parametrize("state", [state for state in PLAIN if state not in TERMINAL])
def test_no_state_is_without_an_exit(state: RoundState) -> None:
    """From every live state some event leads on, and an operator can always end it."""
    leaves = set().union(*(to for (at, _), to in ALLOWED.items() if at is state)) - {state}
    assert leaves
    assert S.ABANDONED in leaves


def test_every_open_round_ends_by_time_alone() -> None:
    """Nobody ever answers: the round ends in a bounded number of steps of the clock."""
    for facts in GRID:
        if facts.in_grace:
            continue
        known, steps = facts, 0
        while True:
            found = decide(S.OPEN, E.TICK, known)
            steps += 1
            assert steps < 20, facts
            if isinstance(found, Wait):
                assert found.until is not None
                known = _later(known, found.until)
            elif isinstance(found, Accept) and found.next is S.OPEN:
                known = _after(known, found)
            else:
                assert isinstance(found, Accept)
                break


def _later(facts: Facts, until: datetime) -> Facts:
    assert until > facts.now
    return replace(facts, now=until)


def _after(facts: Facts, found: Accept) -> Facts:
    """The facts once the effects were carried out and no site has answered."""
    members = {member.client: member for member in facts.members}
    for effect in found.effects:
        if isinstance(effect, ExpireLease):
            old = members[effect.client]
            members[effect.client] = Member(old.client, Standing.LOST, old.attempt)
        elif isinstance(effect, IssueWork):
            members[effect.client] = Member(effect.client, Standing.WAITING, effect.attempt)
        elif isinstance(effect, SetDeadline):
            facts = replace(facts, closes_at=effect.at, extended=effect.extended or facts.extended)
    return replace(facts, members=tuple(members.values()))
