"""Does one more attempt fit a budget? Answered without a new evaluation at every step of a run.

Formal guarantee. Let M be the events of an account with the attempt that is asked for, and S any
multiset with M <= S (every kind of event at least as often). What M releases is a part of what S
releases, so by post-processing delta_M(eps) <= delta_S(eps) for every eps, and the true epsilons
are ordered: true(M) <= true(S). The accountant is an upper bound: true(S) <= epsilon(S). Hence
epsilon(S) <= budget proves true(M) <= budget, which is all that a budget promises; the neighbouring
relation is that of the events (add or remove one unit). Where no such S is found to fit, the
account's own events decide (``core.privacy.ledger.check_budget``), as they would have without it.

S is chosen so that many steps share it, and the accountant's cache, keyed by the multiset itself,
answers: the whole plan of the run, for a run goes through its own events one by one; and what other
runs have spent, rounded up to a ladder that grows by an eighth at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from core.privacy import accounting
from core.privacy.events import PrivacyEvent
from core.privacy.ledger import check_budget

_RUNGS = 8  # steps between two powers of two: at most 12.5 % are added by rounding up

Steps = Counter[PrivacyEvent]
"""How many steps of each kind; a kind is an event of one step."""


def steps_of(events: Iterable[PrivacyEvent]) -> Steps:
    """The multiset of single releases that these events are."""
    counts: Steps = Counter()
    for event in events:
        kind = event if event.steps == 1 else event.model_copy(update={"steps": 1})
        counts[kind] += event.steps
    return counts


def events_of(steps: Steps) -> list[PrivacyEvent]:
    """The same multiset with one event for each kind."""
    return [kind.model_copy(update={"steps": count}) for kind, count in steps.items() if count]


def rounded_up(steps: Steps) -> Steps:
    """Each count at the next rung: a superset that stays the same while counts grow a little."""
    return Counter({kind: _rung(count) for kind, count in steps.items()})


def _rung(count: int) -> int:
    if count <= _RUNGS:
        return count
    width = 1 << (count.bit_length() - _RUNGS.bit_length())
    return -(-count // width) * width


def ceilings(own: Steps, others: Steps, wanted: Steps, planned: Steps) -> Iterator[Steps]:
    """Supersets of own + others + wanted, those that most steps have in common first."""
    after = own + wanted
    whole = after | planned  # per kind the larger count: the plan, or more if attempts were lost
    yield rounded_up(others) + whole
    yield others + whole
    yield rounded_up(others + after)


def require_within_budget(
    *,
    own: Iterable[PrivacyEvent],
    others: Iterable[PrivacyEvent],
    wanted: Iterable[PrivacyEvent],
    planned: Iterable[PrivacyEvent],
    epsilon_budget: float,
    delta: float,
) -> None:
    """Return if ``wanted`` fits the account's budget; else raise ``BudgetExceeded``.

    ``own``: what the run has been charged for this client; ``others``: everything else that the
    account was ever charged; ``planned``: what this client's part of the run is if nothing is lost.
    ``planned`` steers the cost only: whatever it says, no answer rests on fewer events than asked.
    """
    mine, rest, more = steps_of(own), steps_of(others), steps_of(wanted)
    for ceiling in ceilings(mine, rest, more, steps_of(planned)):
        if accounting.epsilon(events_of(ceiling), delta) <= epsilon_budget:
            return
    check_budget(
        events_of(mine + rest), events_of(more), epsilon_budget=epsilon_budget, delta=delta
    )
