"""Draws on the grid: the right distribution, proved bit by bit and measured."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from core.privacy.discrete import gaussian
from core.privacy.discrete.gaussian import LEAST, SMOOTH, ZETA, around, draw, seeded, split
from core.privacy.discrete.table import (
    FRACTIONS,
    LARGEST_VARIANCE,
    ROUNDING_VARIANCE,
    Table,
    rounding,
    table,
    thresholds,
)


@pytest.mark.parametrize(
    ("variance", "fraction"),
    [(1, 0), (2, 0), (50, 0), (1_000, 0), (20, 1), (20, 77), (20, 128), (20, 255)],
)
def test_thresholds_are_those_of_the_definition(variance: int, fraction: int) -> None:
    """All of them, to 2^-255."""
    exact, lowest = thresholds(variance, fraction)
    with mpmath.workprec(500):
        centre = mpmath.mpf(fraction) / FRACTIONS
        places = range(lowest, lowest + len(exact))
        weight = [mpmath.exp(-((k - centre) ** 2) / (2 * variance)) for k in places]
        total, below = mpmath.fsum(weight), mpmath.mpf(0)
        for each, threshold in zip(weight, exact, strict=True):
            below += each / total
            assert abs(mpmath.mpf(threshold) - below * mpmath.mpf(2) ** 256) <= 2


def test_the_table_ends_where_nothing_is_left() -> None:
    for variance in (1, 100, LARGEST_VARIANCE):
        made = table(variance)
        assert made.exact[0] == 0 or made.exact[0].bit_length() < 256 - 64
        assert made.exact[-1] == 1 << 256
        assert all(low <= high for low, high in pairwise(made.exact))


class Script:
    """Words in a given order."""

    def __init__(self, *words: int) -> None:
        self._words = list(words)

    def __call__(self, size: int) -> NDArray[np.uint64]:
        given, self._words = self._words[:size], self._words[size:]
        assert len(given) == size, "more words were drawn than are needed"
        return np.array(given, np.uint64)

    @property
    def left(self) -> int:
        return len(self._words)


def test_words_that_decide_are_all_that_is_drawn() -> None:
    made = Table(9)
    words = [0x8000_0000_0000_0000, 1, (1 << 64) - 2]
    script = Script(*words)
    drawn = made.draw(3, script)
    assert script.left == 0
    for word, k in zip(words, drawn.tolist(), strict=True):
        at = k - made.lowest
        assert made.exact[at - 1] <= word << 192
        assert (word + 1) << 192 <= made.exact[at]


@pytest.mark.parametrize("variance", [1, 9, 400])
def test_a_word_that_equals_a_threshold_is_decided_by_the_next(variance: int) -> None:
    """Just below, at and just above every threshold, with all 256 bits; the tails, too."""
    made = Table(variance)
    for at in range(len(made.exact) - 1):
        exact = made.exact[at]
        for u in (exact - 1, exact, exact + 1):
            if not 0 <= u < 1 << 256:
                continue
            words = [u >> shift & (1 << 64) - 1 for shift in (192, 128, 64, 0)]
            wanted = next(k for k, threshold in enumerate(made.exact) if u < threshold)
            drawn = made.draw(1, Script(*words))
            assert drawn[0] - made.lowest == wanted


@pytest.mark.parametrize("variance", [1, 5, 300, LARGEST_VARIANCE, 3 * LARGEST_VARIANCE, 10**13])
def test_draws_have_the_distribution(variance: int) -> None:
    """Chi-square over forty cells; a wrong variance of half a per cent would fail."""
    size = 400_000
    x = draw(size, variance, seeded(variance))
    edges = np.unique(np.round(stats.norm.ppf(np.arange(1, 40) / 40) * math.sqrt(variance)))
    cells = np.searchsorted(edges, x, side="left")
    if variance <= 300:
        values = np.arange(-30 * math.isqrt(variance) - 30, 30 * math.isqrt(variance) + 31)
        weight = np.exp(-(values.astype(float) ** 2) / (2 * variance))
        chances = np.bincount(
            np.searchsorted(edges, values, side="left"), weight, minlength=len(edges) + 1
        )
    else:
        ends = np.concatenate([[-np.inf], edges + 0.5, [np.inf]]) / math.sqrt(variance)
        chances = np.diff(stats.norm.cdf(ends))
    chances = chances / chances.sum()
    found = np.bincount(cells, minlength=len(chances))
    assert stats.chisquare(found, size * chances).pvalue > 1e-6
    assert stats.kurtosis(x) == pytest.approx(0.0, abs=0.05)
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.01


@pytest.mark.parametrize("fraction", [0, 3, 128, 255])
def test_rounding_decides_equal_words_by_the_next(fraction: int) -> None:
    exact, lowest = rounding().exact[fraction], rounding().lowest
    for whole in (0, -7):
        centre = np.array([whole * FRACTIONS + fraction])
        for threshold in exact[:-1]:
            for u in (threshold - 1, threshold, threshold + 1):
                if not 0 <= u < 1 << 256:
                    continue
                words = [u >> shift & (1 << 64) - 1 for shift in (192, 128, 64, 0)]
                wanted = next(k for k, each in enumerate(exact) if u < each)
                assert rounding().draw(centre, Script(*words))[0] == whole + lowest + wanted


@pytest.mark.parametrize("fraction", [0, 1, 64, 200])
@pytest.mark.parametrize("variance", [LEAST, 10**4, 10**9])
def test_draws_around_a_centre(fraction: int, variance: int) -> None:
    """The mean is the centre, between integers, too; the variance is what was asked for."""
    size = 200_000
    centres = np.full(size, 5 * FRACTIONS + fraction)
    x = around(centres, variance, seeded(fraction + variance))
    assert x.mean() == pytest.approx(5 + fraction / FRACTIONS, abs=6 * math.sqrt(variance / size))
    assert x.var() == pytest.approx(variance, rel=6 * math.sqrt(2 / size))


def test_rounding_has_the_distribution() -> None:
    size = 300_000
    for fraction in (0, 100, 255):
        x = rounding().draw(np.full(size, fraction), seeded(fraction).words)
        values = np.arange(-12, 14)
        weight = np.exp(-((values - fraction / FRACTIONS) ** 2) / (2 * ROUNDING_VARIANCE))
        inside = (x >= -12) & (x <= 13)
        found = np.bincount(x[inside] + 12, minlength=len(values))
        assert inside.mean() > 0.98
        assert stats.chisquare(found, inside.sum() * weight / weight.sum()).pvalue > 1e-6


def test_too_little_noise_for_a_centre_is_refused() -> None:
    around(np.array([3]), LEAST, seeded(1))
    with pytest.raises(ValueError, match="too small"):
        around(np.array([3]), 50, seeded(1))


@given(st.integers(LARGEST_VARIANCE + 1, gaussian.LARGEST))
def test_every_split_keeps_the_lemma_s_condition(variance: int) -> None:
    while variance > LARGEST_VARIANCE:
        step, coarse, fine = split(variance)
        assert step * step * coarse + fine == variance
        assert 1 <= fine <= LARGEST_VARIANCE
        assert coarse * fine >= SMOOTH**2 * (step * step * coarse + fine)
        variance = coarse


def eta(smooth: float) -> mpmath.mpf:
    return 2 * mpmath.nsum(lambda j: mpmath.exp(-2 * mpmath.pi**2 * smooth**2 * j**2), [1, 5])


def test_zeta_bounds_what_the_lemmas_need() -> None:
    with mpmath.workprec(1_000):
        one = mpmath.log((1 + eta(SMOOTH)) / (1 - eta(SMOOTH)))
        assert 4 * one < ZETA
        assert eta(3) > ZETA, "a smaller SMOOTH would not do"


@settings(max_examples=40, deadline=None)
@given(
    step=st.integers(1, 6), coarse=st.integers(1, 60), fine=st.integers(1, 400),
    smooth=st.floats(0.5, 1.2),
)  # fmt: skip
def test_lemma_3_where_its_error_can_be_seen(
    step: int, coarse: int, fine: int, smooth: float
) -> None:
    """a X_1 + X_2 against N_Z(0, a^2 V_1 + V_2), with a SMOOTH so small that the bound is coarse:
    the bound holds at every integer, and is not held by luck (see the next test).
    """
    variance = step * step * coarse + fine
    if coarse * fine < smooth**2 * variance:
        return
    worst = _worst_ratio(step, coarse, fine)
    e = float(eta(smooth))
    small = float(eta(min(math.sqrt(coarse), math.sqrt(fine))))
    assert worst <= math.log((1 + e) / (1 - e)) + 2 * math.log((1 + small) / (1 - small)) + 1e-9


def test_lemma_3_fails_without_its_condition() -> None:
    assert _worst_ratio(6, 50, 1) > 1.0


def _worst_ratio(step: int, coarse: int, fine: int) -> float:
    """max over n of |log P(a X_1 + X_2 = n) / N_Z(0, a^2 V_1 + V_2)(n)|, within six deviations."""
    variance = step * step * coarse + fine
    reach = 6 * math.isqrt(variance) + 6
    n = np.arange(-reach, reach + 1)
    k = np.arange(-12 * math.isqrt(coarse) - 12, 12 * math.isqrt(coarse) + 13)
    first = np.exp(-(k**2) / (2 * coarse))
    second = np.exp(-((n[:, None] - step * k[None, :]) ** 2) / (2 * fine))
    j = np.arange(-12 * math.isqrt(fine) - 12, 12 * math.isqrt(fine) + 13)
    found = (second @ first) / first.sum() / np.exp(-(j**2) / (2 * fine)).sum()
    wide = np.arange(-4 * reach, 4 * reach + 1)
    wanted = np.exp(-(n**2) / (2 * variance)) / np.exp(-(wide**2) / (2 * variance)).sum()
    return float(np.abs(np.log(found / wanted)).max())
