"""The cheap check of a budget against the slow reference, and the cache against recomputation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BudgetExceeded
from core.privacy import accounting, budget
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent, release
from core.privacy.ledger import check_budget
from tests.core.test_accounting import exact_delta

DELTA = 1e-5
# The accountant's interval follows epsilon, so two bounds may err differently; never by more.
ROUNDING = 2e-3
KINDS = [
    release(noise_multiplier=4.0, sample_rate=1.0, unit="record"),
    release(noise_multiplier=2.5, sample_rate=1.0, unit="record"),
    release(noise_multiplier=12.0, sample_rate=1.0, unit="record"),
    release(noise_multiplier=1.2, sample_rate=0.02, unit="record"),
    release(noise_multiplier=6.0, sample_rate=0.3, unit="record"),
]
TRAIN = KINDS[3]
PLAN = [KINDS[0], KINDS[1], *[TRAIN] * 20]

multisets = st.dictionaries(st.sampled_from(KINDS), st.integers(1, 60), max_size=4)


def events(counts: dict[PrivacyEvent, int]) -> list[PrivacyEvent]:
    return [kind for kind, count in counts.items() for _ in range(count)]


def accepts(
    own: Iterable[PrivacyEvent],
    others: Iterable[PrivacyEvent],
    wanted: Iterable[PrivacyEvent],
    planned: Iterable[PrivacyEvent],
    limit: float,
) -> bool:
    try:
        budget.require_within_budget(
            own=own, others=others, wanted=wanted, planned=planned,
            epsilon_budget=limit, delta=DELTA,
        )  # fmt: skip
    except BudgetExceeded:
        return False
    return True


# --- the cache is the recomputation ---


def wrong_answers(
    cached: Callable[[Sequence[PrivacyEvent]], float],
    cases: Iterable[Sequence[PrivacyEvent]],
) -> int:
    """How often a cached accountant disagrees with an evaluation that no cache has seen."""
    return sum(
        cached(case) != accounting._epsilon.__wrapped__(accounting._key(case), DELTA)
        for case in cases
    )


@settings(max_examples=10, deadline=None)
@given(multisets.filter(bool), st.randoms(use_true_random=False))
def test_a_cached_epsilon_is_the_recomputation_whatever_order_and_grouping(
    counts: dict[PrivacyEvent, int], shuffle: object
) -> None:
    plain = events(counts)
    shuffled = list(plain)
    shuffle.shuffle(shuffled)  # type: ignore[attr-defined]
    grouped = budget.events_of(budget.steps_of(plain))
    fresh = accounting._epsilon.__wrapped__(accounting._key(plain), DELTA)
    for form in (plain, shuffled, grouped, [*grouped[1:], *grouped[:1]]):
        assert accounting._key(form) == accounting._key(plain)
        assert epsilon(form, DELTA) == fresh
    assert wrong_answers(lambda case: epsilon(case, DELTA), [shuffled]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": math.nextafter(1.2, 2)},
        {"sample_rate": math.nextafter(0.02, 1)},
        {"steps": 2},
        {"mechanism": "gaussian", "sample_rate": 1.0},
    ],
)
def test_an_altered_event_misses_the_cache(change: dict[str, object]) -> None:
    epsilon(PLAN, DELTA)
    before = accounting._epsilon.cache_info()
    altered = [*PLAN[:-1], TRAIN.model_copy(update=change)]
    assert accounting._key(altered) != accounting._key(PLAN)
    epsilon(altered, DELTA * 0.9)  # a delta that nobody has asked for: surely not there yet
    epsilon(PLAN, DELTA)
    after = accounting._epsilon.cache_info()
    assert (after.misses, after.hits) == (before.misses + 1, before.hits + 1)


def test_another_delta_misses_the_cache() -> None:
    assert epsilon(PLAN, 1e-5) < epsilon(PLAN, 1e-6)


def test_defect_a_cache_keyed_by_the_number_of_events() -> None:
    by_count: dict[int, float] = {}

    def wrong(case: Sequence[PrivacyEvent]) -> float:
        return by_count.setdefault(len(case), epsilon(case, DELTA))

    cases = [[KINDS[0], KINDS[0]], [KINDS[1], KINDS[1]], [KINDS[0], KINDS[1]]]
    assert wrong_answers(wrong, cases) == 2
    assert wrong_answers(lambda case: epsilon(case, DELTA), cases) == 0


def test_defect_a_cache_keyed_by_kinds_without_their_steps() -> None:
    @lru_cache
    def by_kind(kinds: frozenset[tuple[float, float]], first: tuple[PrivacyEvent, ...]) -> float:
        return epsilon(first, DELTA)

    seen: dict[frozenset[tuple[float, float]], tuple[PrivacyEvent, ...]] = {}

    def wrong(case: Sequence[PrivacyEvent]) -> float:
        kinds = frozenset((e.noise_multiplier, e.sample_rate) for e in case)
        return by_kind(kinds, seen.setdefault(kinds, tuple(case)))

    assert wrong_answers(wrong, [PLAN[:3], PLAN[:4], PLAN]) == 2


# --- more events never cost less: what the cheap check rests on ---


@settings(max_examples=20, deadline=None)
@given(multisets.filter(bool), multisets.filter(bool))
def test_epsilon_grows_with_the_multiset(
    part: dict[PrivacyEvent, int], more: dict[PrivacyEvent, int]
) -> None:
    whole = [*events(part), *events(more)]
    assert epsilon(events(part), DELTA) <= epsilon(whole, DELTA) * (1 + ROUNDING)


@given(st.lists(st.floats(0.5, 50.0), min_size=1, max_size=30), st.floats(0.5, 50.0))
@settings(max_examples=100, deadline=None)
def test_the_exact_gaussian_curve_grows_with_the_multiset(sigmas: list[float], more: float) -> None:
    """Gaussians compose to one of precision sum 1/sigma^2 (Balle and Wang 2018, theorem 8): the
    order of true epsilons by a formula, without the accountant.
    """

    def one(all_of_them: list[float]) -> float:
        return 1 / math.sqrt(sum(1 / sigma**2 for sigma in all_of_them))

    for eps in (0.1, 1.0, 4.0):
        part, whole = one(sigmas), one([*sigmas, more])
        assert exact_delta(part, eps) <= exact_delta(whole, eps) + 1e-12


@given(multisets, multisets, multisets, multisets)
@settings(max_examples=200)
def test_every_ceiling_holds_what_is_asked(
    own: dict[PrivacyEvent, int],
    others: dict[PrivacyEvent, int],
    wanted: dict[PrivacyEvent, int],
    planned: dict[PrivacyEvent, int],
) -> None:
    asked = Counter(own) + Counter(others) + Counter(wanted)
    for ceiling in budget.ceilings(*map(Counter, (own, others, wanted, planned))):
        assert asked <= ceiling


@given(st.integers(1, 1_000_000))
def test_the_ladder_rounds_up_by_an_eighth_at_most(count: int) -> None:
    rung = budget._rung(count)
    assert count <= rung <= count * 1.125
    assert budget._rung(rung) == rung


# --- the cheap answer against the slow one ---


@settings(max_examples=12, deadline=None)
@given(multisets, multisets, st.sampled_from(KINDS), multisets, st.floats(0.3, 12.0))
def test_nothing_is_accepted_that_recomputation_refuses(
    own: dict[PrivacyEvent, int],
    others: dict[PrivacyEvent, int],
    wanted: PrivacyEvent,
    planned: dict[PrivacyEvent, int],
    limit: float,
) -> None:
    """And nothing that it accepts is refused: where no ceiling fits, it decides."""
    exact = epsilon([*events(own), *events(others), wanted], DELTA)
    cheap = accepts(events(own), events(others), [wanted], events(planned), limit)
    if cheap:
        assert exact <= limit * (1 + ROUNDING)
    else:
        assert exact > limit


def test_a_budget_equal_to_the_plan_lets_every_round_of_it_pass_with_one_evaluation() -> None:
    limit = epsilon(PLAN, DELTA)
    before = accounting._epsilon.cache_info().misses
    for done in range(len(PLAN)):
        assert accepts(PLAN[:done], [], [PLAN[done]], PLAN, limit)
    assert accounting._epsilon.cache_info().misses == before


def test_a_lost_attempt_is_recomputed_and_counts() -> None:
    """With one attempt lost the last round is one event too many for the plan's own epsilon; the
    ceiling of the plan must not answer for it.
    """
    limit = epsilon(PLAN, DELTA)
    own = [*PLAN[:2], TRAIN, *PLAN[2:-1]]  # one training attempt more than rounds
    assert len(own) == len(PLAN)
    assert not accepts(own, [], [PLAN[-1]], PLAN, limit)
    more = epsilon([*own, PLAN[-1]], DELTA)
    assert more > limit
    before = accounting._epsilon.cache_info().misses
    assert accepts(own, [], [PLAN[-1]], PLAN, more)
    assert accounting._epsilon.cache_info().misses == before  # evaluated above, for itself
    with pytest.raises(BudgetExceeded) as refused:
        budget.require_within_budget(
            own=own, others=[], wanted=[PLAN[-1]], planned=PLAN, epsilon_budget=limit, delta=DELTA
        )
    assert refused.value.facts["epsilon_after"] == more


def test_two_runs_at_once_share_few_evaluations() -> None:
    """Each round of one run changes what the other sees as spent; the ladder absorbs most of it."""
    plan = [KINDS[0], *[KINDS[2]] * 60]  # full batches: the quicker kind
    limit = epsilon([*plan, *plan], DELTA) * 1.1
    accounting._epsilon.cache_clear()
    for done in range(len(plan)):
        assert accepts(plan[:done], plan[:done], [plan[done]], plan, limit)
        assert accepts(plan[:done], plan[: done + 1], [plan[done]], plan, limit)
    assert accounting._epsilon.cache_info().misses <= 42  # of 122 checks


def test_defect_a_ceiling_that_leaves_out_the_other_runs() -> None:
    """The known wrong version: the plan alone fits, the account does not."""
    limit = epsilon(PLAN, DELTA)
    assert epsilon(budget.events_of(budget.steps_of(PLAN)), DELTA) <= limit  # what it would look at
    assert not accepts([], PLAN, [PLAN[0]], PLAN, limit)
    with pytest.raises(BudgetExceeded):
        check_budget(PLAN, [PLAN[0]], epsilon_budget=limit, delta=DELTA)


def test_defect_a_ceiling_that_takes_the_plan_for_what_was_charged() -> None:
    """The known wrong version: the union with the plan, without the attempts beyond it."""
    limit = epsilon(PLAN, DELTA)
    lost = [*PLAN, *[TRAIN] * 10]
    assert not accepts(lost, [], [TRAIN], PLAN, limit)
