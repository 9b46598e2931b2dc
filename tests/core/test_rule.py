"""The public rule of the budget, shrinkage under known noise, and noise added once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.federation.plan import Noise, Plan, PrivacyPlan
from core.federation.rule import MEAN_SHARE, refine_share, resolved, spec_for
from core.models import shrinkage
from core.models.evidence import clipped_share, from_sketches, refined
from core.models.layout import spread_layout
from core.privacy import accounting
from core.privacy.noise import seeded
from core.simulation import ALL_SITES, SimulatedSite, simulate
from core.training.sketch import clipped_sketch
from core.training.spread import clipped_spread
from tests.core import worlds
from tests.core.test_spread import frame_of

SPACE = worlds.space(384, 12)


def privacy(**changes: object) -> PrivacyPlan:
    base = {"epsilon": 2.0, "delta": 1e-5, "n_max": 5_000, "rounds": 0}
    return PrivacyPlan.model_validate(base | changes)


def test_more_noise_gives_the_means_more_until_nothing_is_left_for_moments() -> None:
    shares = [refine_share(z, 10, 14_000, SPACE) for z in (0.1, 2.0, 4.0, 8.0, 16.0)]
    assert shares == sorted(shares)
    assert shares[0] == 0.35
    assert shares[-1] == 1.0
    assert refine_share(2.0, 1, 14_000, SPACE) < refine_share(2.0, 10, 14_000, SPACE)
    assert refine_share(2.0, 10, 1_000, SPACE) > refine_share(2.0, 10, 14_000, SPACE)


def test_moments_that_are_too_many_are_left_out() -> None:
    assert refine_share(0.01, 1, 10**6, worlds.space(4_100, 2)) == 1.0


def test_what_a_plan_sets_is_kept_and_the_rest_is_chosen() -> None:
    one = privacy(sketch_steps=1)
    assert resolved(one, SPACE, 10) is one
    free = resolved(privacy(), SPACE, 10)
    assert (free.sketch_steps, free.mean_share) == (2, MEAN_SHARE)
    assert resolved(privacy(refine_share=0.1), SPACE, 10).refine_share == 0.1
    assert resolved(privacy(mean_share=0.8), SPACE, 10).mean_share == 0.8
    many = resolved(privacy(units_expected=10**6), SPACE, 10)
    assert many.refine_share == 0.35


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_chosen_split_spends_the_target_and_no_more(rounds: int) -> None:
    plan = Plan(name="p", space="clusters", privacy=privacy(rounds=rounds), purpose="simulation")
    spec = spec_for("r", plan, worlds.space(), 3)
    assert 2.0 * 0.985 <= accounting.epsilon(spec.events(), 1e-5) <= 2.0
    assert spec.plan.privacy.is_resolved
    assert not plan.privacy.is_resolved  # the operator's plan is not touched


def test_shares_of_a_step_that_is_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="refine_share: belongs to sketch_steps = 2"):
        privacy(sketch_steps=1, refine_share=0.5)


# --- shrinkage ---


@given(st.integers(0, 500), st.integers(1, 12), st.floats(0.0, 3.0))
@settings(max_examples=60, deadline=None)
def test_factors_lie_between_zero_and_one(seed: int, groups: int, signal: float) -> None:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(groups, 50)) * (1 + signal * draw.random((groups, 1)))
    for rule in (shrinkage.related, shrinkage.separate):
        factors = rule(vectors, np.full(groups, 1.0))
        assert ((factors >= 0) & (factors <= 1)).all()
        assert not rule(np.zeros((groups, 50)), np.full(groups, 1.0)).any()


def test_related_vectors_do_not_vanish_one_by_one_at_heavy_noise() -> None:
    """Ten equal signals far below their noise: alone, some would be dropped."""
    draw = np.random.default_rng(1)
    signals = 0.25 * draw.normal(size=(10, 1_000))
    vectors = signals + draw.normal(size=(10, 1_000))
    together = shrinkage.related(vectors, np.ones(10))
    assert together.min() > 0.5 * together.max() > 0
    assert np.mean(together) == pytest.approx(0.0625 / 1.0625, rel=0.4)
    kept = shrinkage.separate(draw.normal(size=(500, 1_000)), np.ones(500))
    assert (kept > 0).sum() <= 8  # beyond three standard deviations: one or two in a thousand
    assert kept.max() < 0.1


# --- two measurements of the same means ---


def test_the_second_measurement_is_unbiased_and_makes_the_first_better() -> None:
    noise = Noise(sketch_multiplier=8.0, spread_multiplier=8.0, train_multiplier=1.0)
    spec = worlds.spec(noise=noise, privacy={"sketch_steps": 2, "refine_share": 1.0})
    data = worlds.clusters(4_000, seed=2)
    truth = np.stack([data.directions[data.y == c].mean(axis=0) for c in range(3)])
    frame = frame_of(spec, data)
    centre = frame.base / np.sqrt(12)
    assert (clipped_share(spec, centre) <= 1).all()
    released = clipped_spread(spec, data, frame)
    draw = np.random.default_rng(0)
    errors: list[list[float]] = []
    for _ in range(40):
        first = clipped_sketch(spec, data)
        first = first + 8.0 * spec.plan.sketch.bound * draw.normal(size=first.size)
        second = released + 8.0 * draw.normal(size=released.size)
        evidence = from_sketches(spec, [first])
        sums = spread_layout(spec).split(second)["sums"]
        both = refined(spec, evidence, centre, {0: np.asarray(sums)})
        assert (both.sum_sd < evidence.sum_sd).all()
        means = [e.centre + e.sums[0] / e.counts[0][:, None] for e in (evidence, both)]
        errors.append([float(np.sum((m - truth) ** 2)) for m in means])
    before, after = np.mean(errors, axis=0)
    assert after < 0.8 * before


# --- noise once, in the sum ---


def test_aggregated_noise_has_one_client_and_the_same_events() -> None:
    plan = Plan(name="p", space="clusters", privacy=privacy(rounds=1), purpose="simulation")
    sites = [SimulatedSite(n, worlds.clusters(300, seed=i)) for i, n in enumerate("abc")]
    spec = spec_for("r", plan, worlds.space(), 3, "aggregated")
    found = simulate(spec, sites, noise=seeded(1), secret=worlds.SECRET, noise_mode="aggregated")
    assert found.generator.clients == (ALL_SITES,)
    assert not found.generator.code({ALL_SITES: 1.0}).any()
    assert set(found.events) == {"a", "b", "c"}
    for done in found.events.values():
        assert accounting.epsilon(done, 1e-5) <= 2.0
    # Nine hundred units, one draw of noise: the count's error is that of one release.
    std = spec.noise.sketch_multiplier * spec.plan.sketch.bound / 0.3
    assert abs(found.generator.frame.sizes[0] - 900) < 5 * std * np.sqrt(3)
