"""Epsilon: against the exact Gaussian curve, against other accountants, never from the plan."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.errors import UnknownPrivacyEvent
from core.federation.plan import MAX_JOINS, Noise, PrivacyPlan, calibrate
from core.privacy import accounting
from core.privacy.events import PrivacyEvent, release
from tests.core import worlds


def gaussian(sigma: float, steps: int = 1) -> PrivacyEvent:
    return PrivacyEvent(
        mechanism="gaussian", noise_multiplier=sigma, sample_rate=1, steps=steps, unit="record"
    )


def exact_delta(sigma: float, epsilon: float) -> float:
    """Balle and Wang 2018, theorem 8, for sensitivity 1."""
    low, high = 1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma
    return float(stats.norm.cdf(low) - math.exp(epsilon) * stats.norm.cdf(high))


@given(st.floats(0.5, 20.0), st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_gaussian_composition_matches_the_exact_curve(sigma: float, steps: int) -> None:
    """k Gaussians of multiplier s are one of s / sqrt(k): the slow reference is the formula."""
    spent = accounting.epsilon([gaussian(sigma)] * steps, 1e-5)
    one = sigma / math.sqrt(steps)
    assert exact_delta(one, spent) <= 1e-5 * (1 + 1e-6)  # an upper bound...
    if spent > 0.01:
        assert exact_delta(one, spent - 0.005 * math.sqrt(steps) - 0.01 * spent) > 1e-5  # ...tight


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"), [(1.5, 0.2, 20), (0.8, 0.05, 100), (3, 0.5, 5)]
)
def test_subsampled_bound_lies_below_renyi_and_agrees_with_prv(
    sigma: float, rate: float, steps: int
) -> None:
    event = release(noise_multiplier=sigma, sample_rate=rate, unit="record")
    pld = accounting.epsilon([event] * steps, 1e-5)
    assert pld <= accounting.epsilon_rdp([event] * steps, 1e-5)
    from opacus.accountants import PRVAccountant

    prv = PRVAccountant()
    prv.history = [(sigma, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy deprecations inside the cross-check
        other = prv.get_epsilon(1e-5, eps_error=0.005)
    assert pld == pytest.approx(other, abs=0.015)


def test_the_order_of_events_and_the_cache_do_not_matter() -> None:
    a, b = gaussian(2.0), release(noise_multiplier=1.0, sample_rate=0.1, unit="record")
    assert accounting.epsilon([a, b, b], 1e-5) == accounting.epsilon([b, a, b], 1e-5)
    cached = accounting.epsilon([a, b], 1e-5)
    accounting._epsilon.cache_clear()
    assert accounting.epsilon([a, b], 1e-5) == cached


def test_no_events_spend_nothing_and_a_bad_delta_is_refused() -> None:
    assert accounting.epsilon([], 1e-5) == 0.0
    for delta in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            accounting.epsilon([gaussian(1.0)], delta)


@pytest.mark.parametrize("change", [{"mechanism": "laplace"}, {"relation": "replace-one"}])
def test_unknown_events_are_refused(change: dict[str, str]) -> None:
    event = gaussian(1.0).model_copy(update=change)
    with pytest.raises(UnknownPrivacyEvent):
        accounting.epsilon([event], 1e-5)


@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_calibrated_noise_spends_the_target_and_hardly_less(epsilon: float) -> None:
    privacy = PrivacyPlan(
        epsilon=epsilon,
        delta=1e-5,
        n_max=1000,
        rounds=10,
        sample_rate=0.3,
        sketch_steps=1,
        sketch_share=0.8,
        validation_share=0.0,
    )
    spec = worlds.spec(privacy=privacy.model_dump(), noise=calibrate(privacy))
    spent = accounting.epsilon(spec.events(), 1e-5)
    assert epsilon * 0.985 <= spent <= epsilon
    sketch = accounting.epsilon(spec.events()[:1], 1e-5)
    assert sketch <= privacy.sketch_share * epsilon


def test_defect_calibrating_for_fewer_steps_than_run_overspends() -> None:
    """Trap 4: noise planned for 5 rounds, 20 run. Only the executed events tell."""
    planned = PrivacyPlan(
        epsilon=2.0,
        delta=1e-5,
        n_max=1000,
        rounds=5,
        sample_rate=0.3,
        sketch_steps=1,
        sketch_share=0.8,
        validation_share=0.0,
    )
    ran = planned.model_copy(update={"rounds": 20})
    spec = worlds.spec(privacy=ran.model_dump(), noise=calibrate(planned))
    assert accounting.epsilon(spec.events(), 1e-5) > 2.0 * 1.1


def test_defect_ignoring_the_sampling_relation_understates() -> None:
    """A shuffled loader is not Poisson: without amplification the same noise costs far more."""
    step = release(noise_multiplier=1.0, sample_rate=0.1, unit="record")
    honest = accounting.epsilon([gaussian(1.0)] * 10, 1e-5)
    assert accounting.epsilon([step] * 10, 1e-5) < 0.5 * honest


def test_events_of_a_run_are_what_each_round_executes() -> None:
    spec = worlds.spec(noise=Noise(sketch_multiplier=2.0, train_multiplier=3.0))
    kinds = [(e.mechanism, e.noise_multiplier, e.sample_rate) for e in spec.events()]
    sampled = ("poisson-subsampled-gaussian", 3.0, 0.5)
    assert kinds == [("gaussian", 2.0, 1.0), sampled, sampled, sampled]
    assert spec.event(4) == spec.event(0)  # who joins later a run of one sketch step
    with pytest.raises(ValueError, match="rounds 0 to 3"):
        spec.event(4 + MAX_JOINS)
    assert np.isfinite(accounting.epsilon(spec.events(), 1e-5))


def test_targets_below_what_can_be_computed_are_refused() -> None:
    def events(sigma: float) -> list[PrivacyEvent]:
        return [release(noise_multiplier=sigma, sample_rate=1.0, unit="record")]

    for target, delta in ((5e-324, 5e-324), (1e-300, 1e-300), (5e-324, 1e-5)):
        with pytest.raises(ValueError, match="needs too much noise"):
            accounting.calibrate(events, target=target, delta=delta)
