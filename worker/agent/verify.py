"""The site's ledger against the coordinator's, attempt by attempt. Pure.

What must hold, for every attempt (run, round, attempt, client) of a population:

* what was executed here (a commit) is at the coordinator, as a commit, or as lost where the update
  was refused or came too late;
* what the coordinator has as a commit was executed here;
* both hold the same event: mechanism, noise multiplier, sample rate, steps, relation, unit;
* nothing was charged here that is not charged there. So epsilon there >= epsilon here, and the
  excess is the listed attempts that were lost there and never begun here.

An attempt is in flight while one side has not heard of the other's outcome yet: that is harmless.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from core.privacy import accounting
from core.privacy.events import PrivacyEvent
from worker.agent.records import ACCEPTED, AttemptKey, OurAttempt
from worker.agent.theirs import TheirAttempt, TheirLedger

Kind = Literal[
    # harmless
    "in-flight", "not-begun", "lost-unexecuted", "refused-or-late", "outcome-unknown-here",
    "booked-after-restore",
    # discrepancies
    "never-executed", "unknown-there", "missing-commit", "event-differs", "elsewhere",
    "their-ledger", "unit-differs", "their-epsilon", "too-little-there",
]  # fmt: skip
HARMLESS = frozenset(
    {
        "in-flight", "not-begun", "lost-unexecuted", "refused-or-late", "outcome-unknown-here",
        "booked-after-restore",
    }
)  # fmt: skip
_ADMINISTRATOR = "Ask the coordinator's administrator; both sides should keep their databases."
_MENDS: Mapping[Kind, str] = {
    "never-executed": "No noise was drawn for it here: somebody else used this client's token, or "
    "the coordinator's ledger was altered. Revoke the token, then compare the update's digest.",
    "unknown-there": "The coordinator's ledger was altered, or its database was restored from "
    "an older backup. " + _ADMINISTRATOR,
    "missing-commit": "It acknowledged this update: its ledger was altered, or its database was "
    "restored from an older backup (its audit trail then says 'database-restored'). "
    + _ADMINISTRATOR,
    "event-differs": "What was executed is what this site's ledger holds. " + _ADMINISTRATOR,
    "elsewhere": "Two machines spend for one population and count apart: keep all clients of a "
    "population in one site configuration.",
    "their-ledger": "A database would have refused it: somebody changed entries by hand. "
    + _ADMINISTRATOR,
    "unit-differs": "Enrol this population with the unit that is configured here.",
    "their-epsilon": "Do not use its figure; the events count. Compare the versions of "
    "dp-accounting.",
    "too-little-there": "Its budget would be passed without its noticing; yours is not. "
    + _ADMINISTRATOR,
}
# Two builds of the accountant may differ in the last digits.
_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Finding:
    """Something to say about one attempt, or about the account (``key`` is None)."""

    kind: Kind
    says: str
    key: AttemptKey | None = None

    @property
    def harmful(self) -> bool:
        return self.kind not in HARMLESS

    @property
    def mend(self) -> str:
        return _MENDS.get(self.kind, "")


@dataclass(frozen=True)
class Comparison:
    """``epsilon_*`` are recomputed from each side's events at the site's ``delta``; ``collude`` is
    that of each event here, on which they rest.
    """

    population: str
    delta: float
    executed: int
    charged_here: int
    charged_there: int
    epsilon_here: float
    epsilon_there: float
    collude: tuple[int | None, ...]
    findings: tuple[Finding, ...]

    @property
    def discrepancies(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.harmful)


def compare(
    ours: Sequence[OurAttempt],
    theirs: TheirLedger,
    *,
    unit: str,
    delta: float,
    clients: Collection[str],
) -> Comparison:
    """Everything in which the two ledgers of one population differ.

    ``clients``: those of this site that use the population. ``delta``: at which both sides'
    epsilon is recomputed (add or remove one unit).
    """
    here = {attempt.key: attempt for attempt in ours}
    findings: list[Finding] = [Finding("their-ledger", fault) for fault in theirs.faults]
    if theirs.unit != unit:
        findings.append(
            Finding("unit-differs", f"charged per {theirs.unit!r} there, per {unit!r} here")
        )
    for key in sorted({*here, *theirs.attempts}):
        found = _attempt(key, here.get(key), theirs.attempts.get(key), clients)
        if found is not None:
            findings.append(found)
    of_here = [attempt.event for attempt in ours]
    of_there = [attempt.event for attempt in theirs.attempts.values()]
    epsilon_here = accounting.epsilon(of_here, delta)
    epsilon_there = accounting.epsilon(of_there, delta)
    if epsilon_there < epsilon_here * (1 - _TOLERANCE):
        findings.append(
            Finding("too-little-there", f"epsilon {epsilon_there:.6g}, here {epsilon_here:.6g}")
        )
    at_theirs = accounting.epsilon(of_there, theirs.delta)
    if abs(at_theirs - theirs.epsilon_total) > _TOLERANCE * max(at_theirs, theirs.epsilon_total):
        findings.append(
            Finding(
                "their-epsilon",
                f"it says epsilon {theirs.epsilon_total:.6g} at delta {theirs.delta:g}, its own "
                f"events give {at_theirs:.6g}",
            )
        )
    return Comparison(
        population=theirs.population,
        delta=delta,
        executed=sum(attempt.standing == "commit" for attempt in ours),
        charged_here=len(ours),
        charged_there=len(theirs.attempts),
        epsilon_here=epsilon_here,
        epsilon_there=epsilon_there,
        collude=tuple({attempt.event.collude for attempt in ours}),
        findings=tuple(findings),
    )


def lasting(first: Comparison, second: Comparison) -> Comparison:
    """The second comparison; what is a discrepancy in it alone may have just happened.

    The two ledgers cannot be read at one moment while an agent works. What one look finds and an
    earlier one did not is in flight; what both find is there.
    """
    before = {(finding.kind, finding.key) for finding in first.discrepancies}

    def judged(finding: Finding) -> Finding:
        if not finding.harmful or (finding.kind, finding.key) in before:
            return finding
        return Finding("in-flight", f"changing now ({finding.kind}: {finding.says})", finding.key)

    return Comparison(
        population=second.population,
        delta=second.delta,
        executed=second.executed,
        charged_here=second.charged_here,
        charged_there=second.charged_there,
        epsilon_here=second.epsilon_here,
        epsilon_there=second.epsilon_there,
        collude=second.collude,
        findings=tuple(judged(finding) for finding in second.findings),
    )


def _attempt(
    key: AttemptKey,
    ours: OurAttempt | None,
    theirs: TheirAttempt | None,
    clients: Collection[str],
) -> Finding | None:
    if ours is not None and theirs is not None and ours.event != theirs.event:
        return Finding("event-differs", _difference(ours.event, theirs.event), key)
    if ours is None:
        return None if theirs is None else _only_there(key, theirs, clients)
    if theirs is None:
        return Finding("unknown-there", f"{_here(ours)} here, not reserved there", key)
    return _both(key, ours, theirs)


def _only_there(key: AttemptKey, theirs: TheirAttempt, clients: Collection[str]) -> Finding | None:
    if key.client not in clients:
        return Finding(
            "elsewhere", f"{theirs.standing} there, of a client not configured here", key
        )
    if theirs.standing == "commit":
        return Finding("never-executed", "commit there, nothing here", key)
    if theirs.standing == "lost":
        return Finding("lost-unexecuted", "lost there, never begun here", key)
    return Finding("not-begun", "reserved there, not begun here", key)


def _both(key: AttemptKey, ours: OurAttempt, theirs: TheirAttempt) -> Finding | None:
    match ours.standing, theirs.standing:
        case "commit", "commit":
            if ours.delivery in (None, ACCEPTED):
                return None
            return Finding("outcome-unknown-here", f"commit there, {ours.delivery} here", key)
        case "commit", _ if ours.delivery == ACCEPTED:
            return Finding("missing-commit", f"accepted here, {theirs.standing} there", key)
        case "commit", "lost":
            why = ours.delivery or "not delivered"
            return Finding("refused-or-late", f"executed here ({why}), lost there", key)
        case "commit", "open":
            return Finding("in-flight", "executed here, no outcome there yet", key)
        case "lost", "lost":
            return None
        case "lost", "commit" if ours.restored:
            return Finding("booked-after-restore", "commit there, charged as lost here", key)
        case _, "commit":
            return Finding("never-executed", f"commit there, {_here(ours)} here", key)
        case _:
            return Finding("in-flight", f"{theirs.standing} there, {_here(ours)} here", key)


def _here(ours: OurAttempt) -> str:
    return {"open": "begun", "commit": "executed", "lost": "lost"}[ours.standing]


def _difference(ours: PrivacyEvent, theirs: PrivacyEvent) -> str:
    mine, other = ours.model_dump(), theirs.model_dump()
    return "; ".join(
        f"{name} {other[name]!r} there, {value!r} here"
        for name, value in mine.items()
        if other[name] != value
    )
