"""The table of rounds whose sum is secure, exhaustively: every state, event and combination of
facts, as test_round_table.py does it for plain sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from core.federation.rounds import (
    TERMINAL,
    Accept,
    AskStep,
    CancelRun,
    CompleteRun,
    ExpireLease,
    Facts,
    FailRun,
    IssueWork,
    KeepTranscript,
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
    SumFacts,
    Wait,
    decide,
)
from core.secagg.graph import Thresholds, quorum
from tests.core.test_round_table import AFTER, BEFORE, ENDS, NOW, E, S

STEPS = (S.KEYS, S.SHARES, S.CONFIRMING, S.OPENING)
ALLOWED: dict[tuple[RoundState, RoundEvent], set[RoundState]] = {
    (S.DRAFT, E.START): {S.KEYS, S.FAILED, S.ABANDONED},
    (S.DRAFT, E.ABANDON): {S.ABANDONED},
    (S.KEYS, E.TICK): {S.SHARES, S.FAILED},
    (S.KEYS, E.ABANDON): {S.ABANDONED},
    (S.SHARES, E.TICK): {S.OPEN, S.FAILED, S.ABANDONED},
    (S.SHARES, E.ABANDON): {S.ABANDONED},
    (S.OPEN, E.UPDATE): {S.OPEN},
    (S.OPEN, E.TICK): {S.OPEN, S.CONFIRMING, S.FAILED, S.ABANDONED},
    (S.OPEN, E.ABANDON): {S.ABANDONED},
    (S.CONFIRMING, E.TICK): {S.OPENING, S.FAILED},
    (S.CONFIRMING, E.ABANDON): {S.ABANDONED},
    (S.OPENING, E.TICK): {S.CLOSING, S.FAILED},
    (S.OPENING, E.ABANDON): {S.ABANDONED},
    (S.CLOSING, E.TICK): {S.AGGREGATING},
    (S.CLOSING, E.ABANDON): {S.ABANDONED},
    (S.AGGREGATING, E.AGGREGATED): {S.PUBLISHED},
    (S.AGGREGATING, E.AGGREGATION_FAILED): {S.FAILED},
    (S.AGGREGATING, E.ABANDON): {S.ABANDONED},
    (S.AGGREGATING, E.TICK): set(),
}
EFFECTS: dict[tuple[RoundState, RoundState], set[type]] = {
    (S.DRAFT, S.KEYS): {SetDeadline, AskStep},
    (S.KEYS, S.SHARES): {SetDeadline, AskStep},
    (S.SHARES, S.OPEN): {SetDeadline, IssueWork},
    (S.OPEN, S.OPEN): {RecordUpdate, SetDeadline, IssueWork, ExpireLease},
    (S.OPEN, S.CONFIRMING): {LoseOpenWork, SetDeadline, AskStep},
    (S.CONFIRMING, S.OPENING): {SetDeadline, AskStep},
    (S.OPENING, S.CLOSING): {KeepTranscript},
    (S.CLOSING, S.AGGREGATING): {QueueAggregation},
    (S.AGGREGATING, S.PUBLISHED): {PublishModel, OpenNextRound, CompleteRun},
}
# Which step is asked for on the way into a state.
ASKS = {S.KEYS: "keys", S.SHARES: "shares", S.CONFIRMING: "confirm", S.OPENING: "open"}
SITES = 4  # as many as the sums of this grid have, with one that may be missing and one colluding
STANDINGS = (
    Standing.ASKED, Standing.WAITING, Standing.LEASED, Standing.ACCEPTED, Standing.LOST,
    Standing.HELD, Standing.OUT,
)  # fmt: skip


def _members() -> Iterator[tuple[Member, ...]]:
    """Of four: how many stand where. Leases of some are over, attempts of some are spent."""
    yield ()
    for kinds in itertools.combinations_with_replacement(STANDINGS, SITES):
        for late, attempt in ((False, 0), (True, 2)):
            until = BEFORE if late else AFTER
            yield tuple(
                Member(name, standing, attempt, until if standing is Standing.LEASED else None)
                for name, standing in zip("abcd", kinds, strict=True)
            )


def _said() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]:
    for kinds in itertools.combinations_with_replacement(range(3), SITES):
        answered, pending, gone = (
            tuple(n for n, kind in zip("abcd", kinds, strict=True) if kind == which)
            for which in range(3)
        )
        yield answered, pending, gone


def _grid(state: RoundState) -> Iterator[Facts]:
    members = list(_members()) if state in (S.DRAFT, S.OPEN) else [()]
    said = list(_said()) if state in STEPS else [((), (), ())]
    flags = itertools.product(
        members, said, (BEFORE, AFTER), (False, True) if state is S.OPEN else (False,),
        (0, 30) if state is S.OPEN else (0,), (None, AFTER), (None, BEFORE, AFTER), (False, True),
        (NOW - timedelta(hours=1), NOW - timedelta(seconds=5)), (False, True),
        (False, True) if state is S.OPENING else (False,),
    )  # fmt: skip
    for (
        who, (answered, pending, gone), closes, extended, extension, grace, pause, last, made, live,
        openable,
    ) in flags:  # fmt: skip
        yield Facts(
            now=NOW,
            quorum=3,
            deadline=timedelta(seconds=100),
            extension=timedelta(seconds=extension),
            max_attempts=2,
            members=who,
            closes_at=closes,
            extended=extended,
            grace_until=grace,
            paused_until=pause,
            last_round=last,
            lease_live=live,
            why="because",
            created_at=made,
            secure=SumFacts(
                drop=1,
                collude=1,
                step=timedelta(seconds=30),
                clients=0 if state is S.DRAFT else SITES,
                answered=answered,
                pending=pending,
                gone=gone,
                openable=openable,
            ),
        )


GRID = {state: list(_grid(state)) for state in RoundState}


@pytest.mark.parametrize("event", list(RoundEvent))
@pytest.mark.parametrize("state", list(RoundState))
def test_nothing_happens_that_the_table_does_not_allow(
    state: RoundState, event: RoundEvent
) -> None:
    allowed = ALLOWED.get((state, event))
    seen: set[RoundState] = set()
    for facts in GRID[state]:
        found = decide(state, event, facts)
        assert decide(state, event, facts) == found
        if allowed is None:
            assert isinstance(found, Reject)
        elif isinstance(found, Accept):
            assert found.next in allowed, facts
            seen.add(found.next)
            _check(state, found, facts)
        elif isinstance(found, Wait):
            assert found.why
            assert (found.until is None) == (state is S.AGGREGATING)
    if allowed is not None:
        assert seen == allowed


def _check(state: RoundState, found: Accept, facts: Facts) -> None:
    kinds = {type(effect) for effect in found.effects}
    assert kinds <= ENDS.get(found.next, EFFECTS.get((state, found.next), set())), found
    if found.next in ENDS:
        assert kinds & {FailRun, CancelRun}
        assert found.why
    if facts.paused_until is not None:  # what a pause holds up is what is paid for
        assert IssueWork not in kinds
        assert found.next is not S.KEYS
    secure = facts.secure
    assert secure is not None
    for effect in found.effects:
        if isinstance(effect, SetDeadline):
            assert effect.at > facts.now
        if isinstance(effect, AskStep):
            assert effect.step == ASKS[found.next]
        if isinstance(effect, IssueWork) and state is S.SHARES:
            assert effect.client in secure.answered
            assert effect.attempt == 1
    asked = [effect for effect in found.effects if isinstance(effect, AskStep)]
    assert len(asked) == (found.next in ASKS)
    if state in STEPS and found.next not in ENDS:
        _check_step(state, found, facts, secure)
    if found.next is S.KEYS:
        Thresholds.of(len(asked[0].clients), secure.drop, secure.collude)
        assert len(asked[0].clients) >= facts.quorum
    if found.next is S.CONFIRMING:
        there = tuple(member.client for member in facts.of(Standing.ACCEPTED))
        assert asked[0].clients == there
        assert len(there) >= secure.survivors


def _check_step(state: RoundState, found: Accept, facts: Facts, secure: SumFacts) -> None:
    """Nobody goes on with too few, nor before who may yet answer had the time."""
    assert facts.closes_at is not None
    here = len(secure.answered)
    if state is S.OPENING:
        assert secure.openable
        return
    needed = quorum(SITES, secure.collude) if state is S.CONFIRMING else secure.survivors
    assert here >= needed
    if secure.pending:
        assert facts.now >= facts.closes_at
        assert not facts.in_grace
    for effect in found.effects:
        if isinstance(effect, AskStep):
            assert effect.clients == secure.answered


@pytest.mark.parametrize("state", [S.DRAFT, *STEPS, S.OPEN])
def test_time_alone_ends_every_step(state: RoundState) -> None:
    """Nobody ever answers again: the round leaves the state in a few steps of the clock."""
    event = E.START if state is S.DRAFT else E.TICK
    for facts in GRID[state]:
        if facts.in_grace:
            continue
        known, steps = facts, 0
        while True:
            found = decide(state, event, known)
            steps += 1
            assert steps < 20, facts
            if isinstance(found, Wait):
                assert found.until is not None
                known = _later(known, found.until)
            elif isinstance(found, Accept) and found.next is state:
                known = _after(known, found)
            else:
                assert isinstance(found, Accept)
                break


def _later(facts: Facts, until: datetime) -> Facts:
    assert until > facts.now
    return replace(facts, now=until)


def _after(facts: Facts, found: Accept) -> Facts:
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


@pytest.mark.parametrize("state", [state for state in RoundState if state not in TERMINAL])
def test_no_state_is_without_an_exit(state: RoundState) -> None:
    leaves = set().union(*(to for (at, _), to in ALLOWED.items() if at is state)) - {state}
    assert leaves
    assert S.ABANDONED in leaves


@pytest.mark.parametrize("state", STEPS)
def test_too_few_answers_fail_the_round_and_say_who_is_missing(state: RoundState) -> None:
    late = next(
        facts
        for facts in GRID[state]
        if facts.secure is not None
        and facts.secure.answered == ("a",)
        and facts.secure.gone == ("d",)
        and facts.closes_at == BEFORE
        and not facts.in_grace
        and facts.paused_until is None
    )
    found = decide(state, E.TICK, late)
    assert isinstance(found, Accept)
    assert found.next is S.FAILED
    assert "missing: b, c, d" in found.why
