"""Noised sums on the grid: how far neighbours lie apart, and how much noise hides it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.privacy.discrete.gaussian import SMOOTH, seeded
from core.privacy.discrete.lattice import Lattice, design, released
from core.privacy.discrete.table import FRACTIONS


@settings(max_examples=200, deadline=None)
@given(
    bound=st.floats(1e-6, 1e6), length=st.integers(1, 10**7), multiplier=st.floats(0.05, 100.0),
    contributions=st.integers(1, 1_000), part=st.floats(0.1, 1.0), units=st.integers(1, 10**5),
)  # fmt: skip
def test_any_plan_s_grid_has_at_least_the_noise_that_was_asked_for(
    bound: float, length: int, multiplier: float, contributions: int, part: float, units: int
) -> None:
    shares = max(1, int(part * contributions))
    made = design(
        bound=bound, length=length, noise_multiplier=multiplier, shares=shares,
        contributions=contributions, largest=units * bound,
    )  # fmt: skip
    assert made.noise_multiplier >= multiplier
    # In exact arithmetic of integers, and with the rounding of centres counted in full.
    steps = bound / made.step + math.sqrt(length) / FRACTIONS
    assert shares * made.variance - SMOOTH**2 >= (multiplier * steps) ** 2
    assert math.log2(made.step) == int(math.log2(made.step)), "division by a step is exact"
    # What the grid costs: below one per cent of noise, where the noise is not below the grid's.
    cost = math.sqrt(shares) * made.noise_std / (multiplier * bound)
    if multiplier * steps > 10 * math.sqrt(100 * shares):
        assert cost < 1.012
    # Sums of what everybody may send, and of twelve deviations of noise, are told apart.
    reach = contributions * units * bound / made.step
    reach += 12 * math.sqrt(contributions * made.variance)
    assert reach < 2 ** (made.bits - 1)


def _rounded(x: np.ndarray, made: Lattice) -> np.ndarray:
    """The centres, in steps: what noise is drawn around."""
    return np.rint(x / made.step * FRACTIONS) / FRACTIONS


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 300), scale=st.floats(0.0, 1e4))
def test_neighbours_are_no_further_apart_than_the_sensitivity(
    seed: int, length: int, scale: float
) -> None:
    made = design(
        bound=1.0, length=length, noise_multiplier=1.0, shares=1, contributions=1, largest=1e4
    )
    random = np.random.default_rng(seed)
    x = random.normal(size=length) * scale / math.sqrt(length)
    for direction in (random.normal(size=length), np.sign(random.normal(size=length))):
        unit = direction / np.linalg.norm(direction)
        apart = np.linalg.norm(_rounded(x + unit, made) - _rounded(x, made))
        assert apart <= made.sensitivity


def test_the_worst_rounding_needs_the_allowance() -> None:
    """The known wrong version counts bound / step alone: here that is too little."""
    length = 10_000
    made = design(
        bound=1.0, length=length, noise_multiplier=1.0, shares=1, contributions=1, largest=1e4
    )
    half = made.step / FRACTIONS / 2
    unit = np.full(length, 1.0 / math.sqrt(length))
    # Just below the middle between two centres before, just above it afterwards.
    x = half * (1 - 1e-9) - (unit / (2 * half) % 1.0) * 2 * half + half * 2e-9
    apart = np.linalg.norm(_rounded(x + unit, made) - _rounded(x, made))
    assert apart <= made.sensitivity
    assert apart > 1.0 / made.step


def test_noise_is_what_is_promised() -> None:
    made = design(
        bound=2.0, length=100_000, noise_multiplier=3.0, shares=4, contributions=5, largest=100.0
    )
    x = np.random.default_rng(0).normal(size=100_000) * 5
    total = sum(released(x, made, seeded(site)) for site in range(4))
    errors = (total * made.step - 4 * x) / (2.0 * made.noise_std)
    assert errors.std() == pytest.approx(1.0, abs=0.01)
    assert errors.mean() == pytest.approx(0.0, abs=0.015)
    assert stats.kstest(errors, "norm").pvalue > 1e-4
    assert 2 * made.noise_std >= 3.0 * 2.0  # sqrt(shares) of them: z times the bound


def test_what_is_too_large_is_cut_and_what_is_no_number_is_refused() -> None:
    made = design(
        bound=1.0, length=4, noise_multiplier=1.0, shares=1, contributions=1, largest=10.0
    )
    cut = released(np.array([1e300, -1e300, 0.0, 5.0]), made, seeded(1))
    limit = 2 ** (made.bits - 2)
    spread = 12 * math.sqrt(made.variance)
    assert abs(cut[0] - limit) < spread
    assert abs(cut[1] + limit) < spread
    assert abs(cut[3] - 5.0 / made.step) < spread
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            released(np.array([bad, 0.0, 0.0, 0.0]), made, seeded(1))


def test_the_order_of_very_long_sums_is_allowed_for() -> None:
    """n additions of float64 numbers, each off by 2**-53 of a partial sum of at most n units; the
    known wrong version allows 2**-12 whatever n is.
    """
    plan = {"bound": 1.0, "length": 10, "noise_multiplier": 1.0, "shares": 1, "contributions": 1}
    few, many = (design(**plan, largest=n) for n in (9e5, 1e7))  # type: ignore[arg-type]
    rounding = 4 / FRACTIONS
    for made, n in ((few, 9e5), (many, 1e7)):
        assert made.sensitivity >= (1.0 + n**2 * 2.0**-52) / made.step + rounding
    assert few.sensitivity * few.step == pytest.approx(1.0 + 2.0**-12, rel=0.01)
    assert many.sensitivity * many.step > 1.022


@pytest.mark.parametrize(
    "change",
    [
        {"bound": 0.0}, {"bound": math.inf}, {"noise_multiplier": 0.0}, {"shares": 0},
        {"shares": 3}, {"length": 0}, {"largest": 1e30}, {"noise_multiplier": 1e15},
    ],
)  # fmt: skip
def test_plans_without_a_grid_are_refused(change: dict[str, float]) -> None:
    plan = {
        "bound": 1.0, "length": 10, "noise_multiplier": 1.0, "shares": 1, "contributions": 2,
        "largest": 10.0,
    }  # fmt: skip
    with pytest.raises(ValueError):  # noqa: PT011
        design(**{**plan, **change})  # type: ignore[arg-type]
