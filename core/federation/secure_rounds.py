"""The rounds' table where the sum is a secure one: what comes before ``open`` and after it.

``draft -> keys -> shares -> open -> confirming -> opening -> closing``. In ``keys`` and ``shares``
nothing is spent; ``open`` is as in every round, but for who is asked: those who have shared their
secrets. Of M clients M - drop must answer each of the first three steps: with fewer the round
fails, and what was sent stays masked for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from core.federation.round_effects import (
    Accept,
    AskStep,
    Decision,
    IssueWork,
    KeepTranscript,
    LoseOpenWork,
    SetDeadline,
    Wait,
)
from core.federation.round_facts import Facts, RoundState, Standing, SumFacts
from core.secagg.graph import NoThresholds, Thresholds, quorum

_TIME = "%Y-%m-%dT%H:%M:%SZ"
Fail = Callable[[Facts, str], Decision]


def of(facts: Facts) -> SumFacts:
    if facts.secure is None:
        raise ValueError("the round's sum is not a secure one")
    return facts.secure


def start(facts: Facts, fail: Fail) -> Decision:
    """Who takes part is fixed here, so consent is waited for before; then keys are asked for."""
    asked, ready = facts.of(Standing.ASKED), facts.of(Standing.LOST)
    if facts.created_at is None:
        raise ValueError("when the round began is not known")
    until = facts.created_at + facts.deadline
    if asked and (facts.now < until or facts.in_grace):
        return Wait(until, f"consent awaited: {names(m.client for m in asked)}")
    secure = of(facts)
    if len(ready) < facts.quorum:
        return fail(facts, f"{len(ready)} clients can take part, the quorum is {facts.quorum}")
    try:
        Thresholds.of(len(ready), secure.drop, secure.collude)
    except NoThresholds as error:
        return fail(facts, f"no secure sum is possible: {error}")
    return Accept(
        RoundState.KEYS,
        (
            SetDeadline(facts.now + secure.step),
            AskStep("keys", tuple(member.client for member in ready)),
        ),
        f"{len(ready)} clients are asked for keys",
    )


def keys_tick(facts: Facts, fail: Fail) -> Decision:
    secure = of(facts)
    if (early := _waits(facts, secure.survivors, "have sent keys", fail)) is not None:
        return early
    present = len(secure.answered)
    try:
        Thresholds.of(present, present - secure.survivors, secure.collude)
    except NoThresholds as error:
        return fail(facts, f"no secure sum of those who sent keys is possible: {error}")
    return Accept(
        RoundState.SHARES,
        (SetDeadline(facts.now + secure.step), AskStep("shares", secure.answered)),
        f"{present} clients share their secrets",
    )


def shares_tick(facts: Facts, fail: Fail, paused: Callable[[Facts], Decision]) -> Decision:
    secure = of(facts)
    if (early := _waits(facts, secure.survivors, "have shared secrets", fail)) is not None:
        return early
    if facts.paused_until is not None:
        return paused(facts)  # what comes next is paid for
    return Accept(
        RoundState.OPEN,
        (
            SetDeadline(facts.now + facts.deadline),
            *(IssueWork(client, attempt=1) for client in secure.answered),
        ),
        "work is being handed out",
    )


def closed(facts: Facts, why: str) -> Accept:
    """The vectors are here: their clients sign who they are."""
    accepted = tuple(member.client for member in facts.of(Standing.ACCEPTED))
    return Accept(
        RoundState.CONFIRMING,
        (
            LoseOpenWork(),
            SetDeadline(facts.now + of(facts).step),
            AskStep("confirm", accepted),
        ),
        why,
    )


def confirming_tick(facts: Facts, fail: Fail) -> Decision:
    secure = of(facts)
    needed = quorum(secure.clients, secure.collude)
    if (early := _waits(facts, needed, "have signed the list of vectors", fail)) is not None:
        return early
    return Accept(
        RoundState.OPENING,
        (SetDeadline(facts.now + secure.step), AskStep("open", secure.answered)),
        f"{len(secure.answered)} clients open the sum",
    )


def opening_tick(facts: Facts, fail: Fail) -> Decision:
    secure = of(facts)
    if secure.openable:
        return Accept(RoundState.CLOSING, (KeepTranscript(),), "the sum can be opened")
    # One more than there are, so that only the last answer, or the deadline, ends the wait.
    enough = len(secure.answered) + (1 if secure.pending else 0)
    if (early := _waits(facts, enough, "have given their shares", fail)) is not None:
        return early
    return fail(
        facts,
        f"{len(secure.answered)} clients have given their shares, too few to open the sum"
        + _missing(secure),
    )


def _waits(facts: Facts, needed: int, what: str, fail: Fail) -> Decision | None:
    """Wait for more answers, or fail without them; None: the step is over, and enough are here."""
    secure, closes_at = of(facts), facts.closes_at
    if closes_at is None:
        raise ValueError("a step of a secure sum has a deadline")
    here, pending = len(secure.answered), len(secure.pending)
    said = f"{here} of {here + pending + len(secure.gone)} clients {what}, {needed} are needed"
    if here + pending < needed:
        return fail(facts, said + _missing(secure))
    over = facts.now >= closes_at and not facts.in_grace
    if pending and not over:
        until = closes_at
        if facts.grace_until is not None and facts.in_grace:
            until = max(until, facts.grace_until)
        return Wait(until, f"{said}{_missing(secure)}; until {closes_at:{_TIME}}")
    if here < needed:
        return fail(facts, said + _missing(secure))
    return None


def _missing(secure: SumFacts) -> str:
    missing = (*secure.pending, *secure.gone)
    return f"; missing: {names(missing)}" if missing else ""


def names(clients: Iterable[str]) -> str:
    listed = list(clients)
    more = len(listed) - 5
    return ", ".join(listed[:5]) + (f" and {more} more" if more > 0 else "")
