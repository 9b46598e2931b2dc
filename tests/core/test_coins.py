"""Secret per-unit randomness: right distribution, and nobody else's coin moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.privacy.coins import CoinStream
from tests.core.worlds import SECRET

UNITS = [f"unit-{i}".encode() for i in range(20_000)]


def stream(round_number: int = 1, attempt: int = 1, secret: bytes = SECRET) -> CoinStream:
    return CoinStream(secret, "run-1", round_number, attempt)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_poisson_inclusion_has_the_booked_rate(rate: float) -> None:
    hits = int(stream().bernoulli("inclusion", UNITS, rate).sum())
    assert stats.binomtest(hits, len(UNITS), rate).pvalue > 1e-7


def test_inclusion_is_independent_across_rounds_attempts_purposes_and_secrets() -> None:
    streams = [stream(), stream(2), stream(1, 2), stream(secret=bytes(32))]
    coins = [s.bernoulli("inclusion", UNITS, 0.5) for s in streams]
    coins.append(stream().bernoulli("code-dropout", UNITS, 0.5))
    correlations = np.corrcoef(np.array(coins, dtype=float))[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(len(UNITS))


def test_latent_draws_are_standard_normal_and_uncorrelated() -> None:
    draws = stream().normal("latent", UNITS[:5_000], 11)
    assert draws.shape == (5_000, 11)
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-6
    correlations = np.corrcoef(draws.T)[np.triu_indices(11, 1)]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(5_000)


@given(st.integers(0, 199), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_removing_a_unit_changes_no_other_units_coins(removed: int, rate: float) -> None:
    units = UNITS[:200]
    rest = units[:removed] + units[removed + 1 :]
    keep = np.arange(200) != removed
    before = stream().bernoulli("inclusion", units, rate)[keep]
    np.testing.assert_array_equal(before, stream().bernoulli("inclusion", rest, rate))
    latent = stream().normal("latent", units, 3)[keep]
    np.testing.assert_array_equal(latent, stream().normal("latent", rest, 3))


def test_edges_and_a_short_secret() -> None:
    assert stream().bernoulli("inclusion", UNITS[:100], 1.0).all()
    assert not stream().bernoulli("inclusion", UNITS[:100], 0.0).any()
    assert stream().bernoulli("inclusion", [], 0.5).shape == (0,)
    assert stream().normal("latent", [], 3).shape == (0, 3)
    with pytest.raises(ValueError, match="32 bytes"):
        stream(secret=b"short")
