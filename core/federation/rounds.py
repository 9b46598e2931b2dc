"""The life of a round as a pure table: ``decide(state, event, facts)``.

``draft -> open -> closing -> aggregating -> published``; ``failed`` and ``abandoned`` end it too.
Where the sum is a secure one, steps of its protocol come before and after ``open``
(``core.federation.secure_rounds``).
Nothing here reads a clock or a database: time is a fact, and what shall happen is returned as
effects that a service carries out in the transaction that stores the next state. A decision can
therefore be taken again after a crash, with the same result.

A join is a round of a completed run: the same table, but neither its end nor its failure is the
run's. The report round is of a run whose model is published: if it fails, the run is completed
without a report.

A paused run hands out no work and lets no deadline pass; what is in hand may be finished, and a
round in which nobody is waited for goes on to its model.

A round waits only with a reason and, except for the aggregating worker (whose lease and attempts
are limited elsewhere), with a deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from core.federation import secure_rounds
from core.federation.round_effects import Accept as Accept
from core.federation.round_effects import AskStep as AskStep
from core.federation.round_effects import CancelRun as CancelRun
from core.federation.round_effects import CompleteRun as CompleteRun
from core.federation.round_effects import Decision as Decision
from core.federation.round_effects import Effect as Effect
from core.federation.round_effects import ExpireLease as ExpireLease
from core.federation.round_effects import FailRun as FailRun
from core.federation.round_effects import IssueWork as IssueWork
from core.federation.round_effects import KeepTranscript as KeepTranscript
from core.federation.round_effects import LoseOpenWork as LoseOpenWork
from core.federation.round_effects import OpenNextRound as OpenNextRound
from core.federation.round_effects import PublishModel as PublishModel
from core.federation.round_effects import QueueAggregation as QueueAggregation
from core.federation.round_effects import RecordUpdate as RecordUpdate
from core.federation.round_effects import Reject as Reject
from core.federation.round_effects import SetDeadline as SetDeadline
from core.federation.round_effects import Wait as Wait
from core.federation.round_facts import TERMINAL as TERMINAL
from core.federation.round_facts import Facts as Facts
from core.federation.round_facts import Member as Member
from core.federation.round_facts import RoundEvent as RoundEvent
from core.federation.round_facts import RoundState as RoundState
from core.federation.round_facts import Standing as Standing
from core.federation.round_facts import SumFacts as SumFacts


def _names(members: tuple[Member, ...]) -> str:
    shown = [m.client + (f" ({m.why})" if m.why else "") for m in members[:5]]
    more = len(members) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _start(facts: Facts) -> Decision:
    """Work for everybody who may have some; who has not consented yet is waited for."""
    if facts.paused_until is not None:
        return _paused(facts, facts.paused_until)
    if facts.secure is not None:
        return secure_rounds.start(facts, _fail)
    closes_at = facts.now + facts.deadline
    issue = tuple(IssueWork(m.client, attempt=1) for m in facts.of(Standing.LOST))
    return Accept(RoundState.OPEN, (SetDeadline(closes_at), *issue), "work is being handed out")


def _paused(facts: Facts, until: datetime, working: str = "") -> Decision:
    """A pause spends nothing and has an end. Nobody resumed: the run is cancelled, not resumed,
    because it may have been stopped for a reason.
    """
    if facts.now >= until and not facts.in_grace:
        return _stop(facts, RoundState.ABANDONED, f"paused until {until:{_TIME}}, not resumed")
    return Wait(
        until, f"paused by the operator{working}; cancelled unless resumed by {until:{_TIME}}"
    )


def _update(facts: Facts) -> Decision:
    return Accept(RoundState.OPEN, (RecordUpdate(),)) if facts.lease_live else Reject("lease-lost")


def _stop(facts: Facts, state: RoundState, why: str) -> Accept:
    """A round ends without a model. So does its run, unless that was completed before, or lacks
    only its report.
    """
    ends: Effect = FailRun(why) if state is RoundState.FAILED else CancelRun(why)
    if facts.report and state is RoundState.FAILED:
        ends = CompleteRun()
    return Accept(state, (LoseOpenWork(),) if facts.join else (LoseOpenWork(), ends), why)


def _fail(facts: Facts, why: str) -> Accept:
    return _stop(facts, RoundState.FAILED, why)


def _late(facts: Facts) -> tuple[Effect, ...]:
    """Leases that have ended; none during the grace after a start of the coordinator."""
    if facts.in_grace:
        return ()
    return tuple(
        ExpireLease(m.client)
        for m in facts.of(Standing.LEASED)
        if m.until is not None and m.until <= facts.now
    )


def _again(facts: Facts) -> tuple[Effect, ...]:
    return tuple(
        IssueWork(m.client, attempt=m.attempt + 1)
        for m in facts.of(Standing.LOST)
        if m.attempt < facts.max_attempts
    )


def _open_tick(facts: Facts) -> Decision:
    if facts.closes_at is None:
        raise ValueError("an open round has a deadline")
    if late := _late(facts):
        return Accept(RoundState.OPEN, late, "a lease has ended without an update")
    accepted = len(facts.of(Standing.ACCEPTED))
    again = _again(facts)
    if facts.paused_until is not None and _needs_work(facts, again):
        # Neither orders nor deadlines: who is at work goes on, for it has spent already.
        at_work = facts.of(Standing.LEASED)
        working = f"; still working: {_names(at_work)}" if at_work else ""
        return _paused(facts, facts.paused_until, working)
    pending = facts.of(*_PENDING)
    if not again and accepted + len(pending) + len(facts.of(Standing.HELD)) < facts.quorum:
        return _fail(
            facts,
            f"the quorum of {facts.quorum} can no longer be reached ({accepted} accepted, "
            f"{len(pending)} pending); out: {_names(facts.of(*_LEFT_OUT))}",
        )
    over = facts.now >= facts.closes_at and not facts.in_grace
    if over and accepted >= facts.quorum:
        return _closed(facts, "the deadline has passed")
    if over and (facts.extended or not facts.extension):
        return _fail(
            facts,
            f"the deadline has passed with {accepted} of {facts.quorum} updates needed; "
            f"missing: {_names(facts.of(*_MISSING))}",
        )
    if over:
        until = facts.now + facts.extension
        return Accept(RoundState.OPEN, (SetDeadline(until, extended=True),), "extended once")
    if again:
        return Accept(RoundState.OPEN, again, "an attempt was lost and is issued again")
    if not pending and accepted >= facts.quorum:
        return _closed(facts, "every update that can come is here")
    ends = [m.until for m in facts.of(Standing.LEASED) if m.until is not None]
    until = min([facts.closes_at, *ends])
    if facts.grace_until is not None and facts.in_grace:
        until = max(until, facts.grace_until)
    return Wait(until, _waiting(facts, accepted, pending))


def _closed(facts: Facts, why: str) -> Accept:
    """Nothing more is taken."""
    if facts.secure is not None:
        return secure_rounds.closed(facts, why)
    return Accept(RoundState.CLOSING, (LoseOpenWork(),), why)


_TIME = "%Y-%m-%dT%H:%M:%SZ"
_PENDING = (Standing.ASKED, Standing.WAITING, Standing.LEASED)
_LEFT_OUT = (Standing.OUT, Standing.HELD, Standing.LOST)
_MISSING = (*_PENDING, *_LEFT_OUT)


def _needs_work(facts: Facts, again: tuple[Effect, ...]) -> bool:
    """Is there anybody whose update could still come?"""
    below = len(facts.of(Standing.ACCEPTED)) < facts.quorum
    return bool(again) or bool(facts.of(*_PENDING)) or (below and bool(facts.of(Standing.HELD)))


_WORDS = (
    (Standing.LEASED, "working"),
    (Standing.WAITING, "not yet claimed"),
    (Standing.ASKED, "consent awaited"),
)


def _waiting(facts: Facts, accepted: int, pending: tuple[Member, ...]) -> str:
    parts = [f"{accepted} of {len(facts.members)} updates, quorum {facts.quorum}"]
    for standing, words in _WORDS:
        group = tuple(m for m in pending if m.standing is standing)
        if group:
            parts.append(f"{words}: {_names(group)}")
    if out := facts.of(*_LEFT_OUT):
        parts.append(f"left out: {_names(out)}")
    parts.append(f"until {facts.closes_at:{_TIME}}" if facts.closes_at else "")
    return "; ".join(parts)


def _closing_tick(facts: Facts) -> Decision:
    return Accept(RoundState.AGGREGATING, (QueueAggregation(),), "updates are being summed")


def _aggregating_tick(facts: Facts) -> Decision:
    return Wait(None, facts.why or "updates are being summed")


def _aggregated(facts: Facts) -> Decision:
    if facts.join:
        return Accept(RoundState.PUBLISHED, (PublishModel(),))
    then: Effect = CompleteRun() if facts.last_round else OpenNextRound()
    return Accept(RoundState.PUBLISHED, (PublishModel(), then))


def _aggregation_failed(facts: Facts) -> Decision:
    return _fail(facts, f"the updates could not be summed: {facts.why}")


def _abandon(facts: Facts) -> Decision:
    return _stop(facts, RoundState.ABANDONED, facts.why or "stopped by the operator")


def _keys_tick(facts: Facts) -> Decision:
    return secure_rounds.keys_tick(facts, _fail)


def _shares_tick(facts: Facts) -> Decision:
    return secure_rounds.shares_tick(facts, _fail, _waits_paused)


def _waits_paused(facts: Facts) -> Decision:
    if facts.paused_until is None:
        raise ValueError("the run is not paused")
    return _paused(facts, facts.paused_until)


def _confirming_tick(facts: Facts) -> Decision:
    return secure_rounds.confirming_tick(facts, _fail)


def _opening_tick(facts: Facts) -> Decision:
    return secure_rounds.opening_tick(facts, _fail)


_TABLE: Mapping[tuple[RoundState, RoundEvent], Callable[[Facts], Decision]] = {
    (RoundState.DRAFT, RoundEvent.START): _start,
    (RoundState.DRAFT, RoundEvent.ABANDON): _abandon,
    (RoundState.KEYS, RoundEvent.TICK): _keys_tick,
    (RoundState.KEYS, RoundEvent.ABANDON): _abandon,
    (RoundState.SHARES, RoundEvent.TICK): _shares_tick,
    (RoundState.SHARES, RoundEvent.ABANDON): _abandon,
    (RoundState.CONFIRMING, RoundEvent.TICK): _confirming_tick,
    (RoundState.CONFIRMING, RoundEvent.ABANDON): _abandon,
    (RoundState.OPENING, RoundEvent.TICK): _opening_tick,
    (RoundState.OPENING, RoundEvent.ABANDON): _abandon,
    (RoundState.OPEN, RoundEvent.UPDATE): _update,
    (RoundState.OPEN, RoundEvent.TICK): _open_tick,
    (RoundState.OPEN, RoundEvent.ABANDON): _abandon,
    (RoundState.CLOSING, RoundEvent.TICK): _closing_tick,
    (RoundState.CLOSING, RoundEvent.ABANDON): _abandon,
    (RoundState.AGGREGATING, RoundEvent.TICK): _aggregating_tick,
    (RoundState.AGGREGATING, RoundEvent.AGGREGATED): _aggregated,
    (RoundState.AGGREGATING, RoundEvent.AGGREGATION_FAILED): _aggregation_failed,
    (RoundState.AGGREGATING, RoundEvent.ABANDON): _abandon,
}

_NOT_YET_OPEN = (RoundState.DRAFT, RoundState.KEYS, RoundState.SHARES)
TAKE_UPDATES = tuple(state.value for state, event in _TABLE if event is RoundEvent.UPDATE)
"""States of a round in which an update may count, if its lease is alive."""


def decide(state: RoundState, event: RoundEvent, facts: Facts) -> Decision:
    """What happens to a round. Pairs that are not in the table are refused and change nothing.

    An update outside ``open`` is ``round-closed`` (or ``lease-lost`` in a round that is not open
    yet, which no honest client can reach); every other stranger is ``conflict``.
    """
    if (rule := _TABLE.get((state, event))) is not None:
        return rule(facts)
    if event is RoundEvent.UPDATE:
        return Reject("lease-lost" if state in _NOT_YET_OPEN else "round-closed")
    return Reject("conflict")
