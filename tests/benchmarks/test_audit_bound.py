"""The lower bound on epsilon against slow references and against mechanisms of known epsilon."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from benchmarks.audit.bound import SHARES, ideal, lower_bound, most, p_value, prove

LN3 = math.log(3.0)  # at which a guess is right with probability 3/4, exactly


def _exact(canaries: int, guesses: int, right: int, delta: Fraction) -> Fraction:
    """The theorem's bound at epsilon ln 3 in whole numbers, term by term."""
    q = Fraction(3, 4)
    mass = [
        math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)
    ]  # fmt: skip
    tail = sum(mass[right:], Fraction(0))
    best = max(
        sum((mass[k] for k in range(max(0, right - i), right)), Fraction(0)) / i
        for i in range(1, canaries + 1)
    )
    return min(Fraction(1), tail + 2 * canaries * delta * best)


@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 10_000), Fraction(1, 50)])
@pytest.mark.parametrize(("canaries", "guesses"), [(12, 12), (40, 10), (30, 1)])
def test_p_values_are_those_of_the_theorem(canaries: int, guesses: int, delta: Fraction) -> None:
    for right in range(guesses + 1):
        found = p_value(canaries, guesses, right, LN3, float(delta))
        assert found == pytest.approx(float(_exact(canaries, guesses, right, delta)), rel=1e-9)


def test_without_delta_it_is_the_binomial_tail() -> None:
    for right in range(51):
        tail = stats.binom.sf(right - 1, 50, 1.0 / (1.0 + math.exp(-0.7)))
        assert p_value(200, 50, right, 0.7, 0.0) == pytest.approx(tail)


@pytest.mark.parametrize("delta", [0.0, 1e-6, 1e-5, 1e-4])
def test_p_values_rise_with_epsilon_and_delta_and_fall_with_right_guesses(delta: float) -> None:
    grid = np.linspace(0.0, 6.0, 121)
    for right in (130, 180, 230, 249, 250):
        # Where a p-value decides, that is, as long as it is small.
        values = np.array([p_value(1000, 250, right, e, delta) for e in grid])
        small = values < 0.5
        assert np.all(np.diff(values[small]) >= -1e-12)
        assert p_value(1000, 250, right, 1.0, 2 * delta) >= p_value(1000, 250, right, 1.0, delta)
    falling = [p_value(1000, 250, right, 2.0, delta) for right in range(215, 251)]
    assert np.all(np.diff(falling) <= 1e-12)


def test_the_bound_is_refuted_and_a_little_more_is_not() -> None:
    for right in (140, 200, 250):
        low = lower_bound(1000, 250, right, 1e-5)
        assert p_value(1000, 250, right, low, 1e-5) <= 0.05
        assert p_value(1000, 250, right, low + 0.002, 1e-5) > 0.05
    assert lower_bound(1000, 250, 125, 1e-5) == 0.0
    assert lower_bound(1000, 250, 0, 1e-5) == 0.0


def test_no_bound_is_above_what_so_many_guesses_can_prove() -> None:
    """All right, without delta: q^r = 0.05 has a closed form. Delta and errors only lower it."""
    for guesses in (10, 100, 1000):
        q = 0.05 ** (1.0 / guesses)
        ceiling = math.log(q / (1.0 - q))
        assert lower_bound(guesses, guesses, guesses, 0.0) == pytest.approx(ceiling, abs=1e-3)
        assert lower_bound(guesses, guesses, guesses, 1e-5) <= ceiling
        assert lower_bound(guesses, guesses, guesses - 1, 0.0) < ceiling
    perfect = prove(np.tile([0.0, 1.0], 500), np.tile([False, True], 500), 1e-5)
    assert perfect.epsilon == most(1000, 1e-5) < lower_bound(1000, 1000, 1000, 0.0)


def _responses(
    draw: np.random.Generator, canaries: int, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coins and their randomized response, as beliefs: exactly (epsilon, 0)-private."""
    coins = draw.random(canaries) < 0.5
    kept = draw.random(canaries) < 1.0 / (1.0 + math.exp(-epsilon))
    # Equally sure of all; the order of ties must not know the answers.
    return np.where(kept, coins, ~coins).astype(float), coins


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0])
def test_bounds_of_randomized_response_hold_as_often_as_promised(epsilon: float) -> None:
    """200 audits at 95 %: 10 wrong are expected at most; 21 happen once in a thousand."""
    draw = np.random.default_rng(7)
    bounds = np.array(
        [prove(*_responses(draw, 1000, epsilon), 0.0).epsilon for _ in range(200)]
    )  # fmt: skip
    assert np.sum(bounds > epsilon) <= 20
    # And they are not idle: most of epsilon is found.
    assert np.median(bounds) > 0.7 * epsilon


def test_delta_failures_are_paid_for() -> None:
    """With probability delta a canary's coin is told outright: (epsilon, delta)-private."""
    draw = np.random.default_rng(8)
    epsilon, delta, canaries = 1.0, 0.02, 400
    wrong, naive = 0, 0
    for _ in range(300):
        beliefs, coins = _responses(draw, canaries, epsilon)
        told = draw.random(canaries) < delta
        surer = np.where(told, np.where(coins, 2.0, -1.0), beliefs)
        wrong += prove(surer, coins, delta).epsilon > epsilon
        naive += prove(surer, coins, 0.0).epsilon > epsilon
    assert wrong <= 26  # expected at most 15; 27 happen once in a thousand times
    assert naive > 26  # the correction is needed: without it the promise would be broken


def test_defect_choosing_the_number_of_guesses_afterwards() -> None:
    """The best of many counts, each at the whole error, is wrong too often; ours is not."""
    draw = np.random.default_rng(9)
    wrong, ours = 0, 0
    for _ in range(200):
        beliefs, coins = _responses(draw, 200, 0.5)
        hits = np.cumsum((beliefs > 0.5) == coins)
        greedy = max(lower_bound(200, n, int(hits[n - 1]), 0.0) for n in range(10, 201, 10))
        wrong += greedy > 0.5
        ours += prove(beliefs, coins, 0.0).epsilon > 0.5
    assert wrong > 20
    assert ours <= 20


def test_a_perfect_attack_is_below_what_is_private_and_above_nothing() -> None:
    draw = np.random.default_rng(0)
    assert ideal(1000, 0.0, 1e-5, draw) < 0.2
    strong = ideal(1000, 1.6, 1e-5, draw)  # of a Gaussian release at epsilon 8
    assert 1.5 < strong < most(1000, 1e-5)
    assert ideal(1000, 16.0, 1e-5, draw) == most(1000, 1e-5)


def test_impossible_counts_are_refused() -> None:
    for counts in ((10, 11, 5), (10, 5, 6), (10, 5, -1)):
        with pytest.raises(ValueError, match="does not hold"):
            p_value(*counts, 1.0, 0.0)
    for epsilon, delta in ((-1.0, 0.0), (1.0, 1.5), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="epsilon"):
            p_value(10, 5, 5, epsilon, delta)
    assert len(SHARES) == 3
