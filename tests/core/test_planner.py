"""The planner against the slow reference: what it answers fits, and the next number does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.federation import planner
from core.federation.plan import PrivacyPlan, RunSpec, calibrate
from core.federation.planner import Purse, forecast, lost_attempts, noise_for, rounds_left
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent, release
from tests.core import worlds

DELTA = 1e-5
OLD = release(noise_multiplier=6.0, sample_rate=1.0, unit="record")


def spec_of(**changes: object) -> RunSpec:
    values = {
        "epsilon": 3.0, "delta": DELTA, "n_max": 1000, "rounds": 8, "sample_rate": 0.3,
        "sketch_steps": 1, "sketch_share": 0.7, "validation_share": 0.0,
    }  # fmt: skip
    privacy = PrivacyPlan.model_validate(values | changes)
    return worlds.spec(privacy=privacy.model_dump(), noise=calibrate(privacy))


SPEC = spec_of()
SKETCH, TRAIN = SPEC.event(0), SPEC.event(1)


def spends(purse: Purse, own: list[PrivacyEvent], *once: PrivacyEvent) -> float:
    """The reference: all events written out."""
    return epsilon([*purse.spent, *(own * purse.sharing), *once], purse.delta)


budgets = st.floats(0.3, 9.0)
accounts = st.integers(0, 25).map(lambda count: (OLD,) * count)


@settings(max_examples=8, deadline=None)
@given(budgets, accounts, st.integers(1, 2))
def test_rounds_left_are_those_of_a_search_one_by_one(
    limit: float, spent: tuple[PrivacyEvent, ...], sharing: int
) -> None:
    purse = Purse(spent, limit, DELTA, sharing)
    left = rounds_left(SPEC, purse)
    if left is None:
        assert spends(purse, [SKETCH]) > limit
        return
    assert spends(purse, [SKETCH, *[TRAIN] * left]) <= limit
    assert spends(purse, [SKETCH, *[TRAIN] * (left + 1)]) > limit


def test_rounds_left_of_the_plans_own_budget_are_the_plans_rounds() -> None:
    purse = Purse((), epsilon(SPEC.events(), DELTA), DELTA)
    assert rounds_left(SPEC, purse) == 8
    less = Purse((), epsilon(SPEC.events(), DELTA) * (1 - 1e-6), DELTA)
    assert rounds_left(SPEC, less) == 7


def test_a_validation_round_is_paid_before_rounds_are_counted() -> None:
    spec = spec_of(validation_share=0.1)
    purse = Purse((), epsilon(spec.events(), DELTA), DELTA)
    assert rounds_left(spec, purse) == 8
    only_sketch = Purse((), epsilon([spec.event(0)], DELTA), DELTA)
    assert rounds_left(spec, only_sketch) is None


def test_a_plan_that_does_not_train_has_no_rounds_left() -> None:
    spec = spec_of(rounds=0, sketch_share=None)
    found = forecast(spec, Purse((), 50.0, DELTA), [0], clients=1)
    assert (found.rounds_left, found.fits) == (None, True)
    assert set(found.lost_attempts) == {"sketch"}


def test_the_limit_of_rounds_is_a_limit() -> None:
    quiet = worlds.spec(
        privacy=SPEC.plan.privacy.model_dump(),
        noise=SPEC.noise.model_copy(update={"train_multiplier": 5000.0}),
    )
    assert rounds_left(quiet, Purse((), 20.0, DELTA)) == planner.MOST_ROUNDS


@settings(max_examples=8, deadline=None)
@given(budgets, accounts, st.integers(0, 60), st.integers(1, 2))
def test_needed_noise_fits_and_a_little_less_does_not(
    limit: float, spent: tuple[PrivacyEvent, ...], rounds: int, sharing: int
) -> None:
    purse = Purse(spent, limit, DELTA, sharing)
    needed = noise_for(SPEC, purse, rounds, clients=1)
    sigma = needed.train_multiplier
    if rounds == 0 or not needed.possible:
        assert sigma is None
        assert needed.why
        if spends(purse, [SKETCH]) > limit:
            assert not needed.possible
        return

    def with_noise(multiplier: float) -> float:
        train = release(noise_multiplier=multiplier, sample_rate=0.3, unit="record")
        return spends(purse, [SKETCH, *[train] * rounds])

    assert sigma is not None
    assert with_noise(sigma) <= limit
    assert with_noise(sigma * 0.99) > limit or sigma < 0.02


def test_the_noise_of_the_plans_own_rounds_in_its_own_budget_is_the_plans() -> None:
    for spec in (SPEC, spec_of(validation_share=0.1), spec_of(local_steps=3)):
        purse = Purse((), spec.plan.privacy.epsilon, DELTA)
        needed = noise_for(spec, purse, 8, clients=1)
        assert needed.train_multiplier == pytest.approx(spec.noise.train_multiplier, rel=1e-3)


def test_rounds_of_a_share_of_the_clients_need_less_noise() -> None:
    rules = SPEC.plan.round.model_copy(update={"client_fraction": 0.5, "quorum": 2})
    plan = SPEC.plan.model_copy(update={"round": rules})
    spec = SPEC.model_copy(update={"plan": plan, "founding_clients": 4})
    purse = Purse((), 3.0, DELTA)
    some, everyone = noise_for(spec, purse, 8, clients=4), noise_for(SPEC, purse, 8, clients=4)
    assert (some.participations, everyone.participations) == (4, 8)
    assert some.train_multiplier is not None
    assert everyone.train_multiplier is not None
    assert some.train_multiplier < everyone.train_multiplier
    assert noise_for(SPEC, purse, 4, clients=4).train_multiplier == some.train_multiplier


@settings(max_examples=6, deadline=None)
@given(st.floats(3.0, 7.0), accounts)
def test_lost_attempts_that_fit(limit: float, spent: tuple[PrivacyEvent, ...]) -> None:
    purse = Purse(spent, limit, DELTA)
    allowed = lost_attempts(SPEC, purse)
    assert set(allowed) == {"sketch", "train"}
    for kind, event in (("sketch", SKETCH), ("train", TRAIN)):
        count = allowed[kind]  # type: ignore[index]
        if spends(purse, SPEC.events()) > limit:
            assert count == 0
            continue
        assert spends(purse, SPEC.events(), *[event] * count) <= limit
        if count < planner.MOST_LOST:
            assert spends(purse, SPEC.events(), *[event] * (count + 1)) > limit


def test_defect_planning_from_the_plan_and_not_from_the_account() -> None:
    """The known wrong version: what was spent before is left out, and lost attempts with it."""
    spent = (OLD,) * 20
    limit = 4.0
    blind, seeing = Purse((), limit, DELTA), Purse(spent, limit, DELTA)
    assert spends(seeing, [SKETCH, *[TRAIN] * (rounds_left(SPEC, blind) or 0)]) > limit
    assert (rounds_left(SPEC, seeing) or 0) < (rounds_left(SPEC, blind) or 0)


@pytest.mark.parametrize(("rounds", "steps"), [(10_001, 1), (-1, 1), (5_000, 30)])
def test_more_than_can_be_accounted_for_is_refused(rounds: int, steps: int) -> None:
    privacy = SPEC.plan.privacy.model_copy(update={"local_steps": steps})
    spec = SPEC.model_copy(update={"plan": SPEC.plan.model_copy(update={"privacy": privacy})})
    with pytest.raises(ValueError, match="more than"):
        noise_for(spec, Purse((), 9.0, DELTA), rounds, clients=1)


@given(st.integers(0, 500), st.integers(0, 400), st.integers(1, 600))
def test_the_search_is_that_of_a_scan(most: int, true: int, guess: int) -> None:
    calls: list[int] = []

    def fits(number: int) -> bool:
        assert 0 <= number <= most
        calls.append(number)
        return number <= true

    assert planner._largest(fits, most, guess=guess) == min(true, most)
    assert len(calls) <= 22
    assert planner._largest(lambda _: False, most, guess=guess) is None
