"""A simulated run whose sums are secure ones: less noise, and the guarantee that was promised."""

from __future__ import annotations

import numpy as np
import pytest

from core.privacy.discrete.gaussian import seeded as seeded_bits
from core.secagg.graph import NoThresholds
from core.secagg.simulated import SecureTerms, noised_sum

P, M = 3_000, 10


def _errors(terms: SecureTerms, sites: int = M) -> np.ndarray:
    random = np.random.default_rng(3)
    totals = {f"site-{at}": random.normal(size=P) * 30 for at in range(sites)}
    found = noised_sum(
        totals, run_id="run", round_number=0, bound=2.0, noise_multiplier=1.5, n_max=1_000,
        terms=terms,
    )  # fmt: skip
    return (found - sum(totals.values())) / (1.5 * 2.0)


@pytest.mark.parametrize(
    ("drop", "collude", "factor"),
    [(0, 0, 1.0), (0, 3, (10 / 7) ** 0.5), (2, 3, (10 / 5) ** 0.5)],
)
def test_the_sum_carries_the_noise_once_and_its_allowance(
    drop: int, collude: int, factor: float
) -> None:
    errors = _errors(SecureTerms(seeded_bits(1), drop, collude))
    assert errors.std() == pytest.approx(factor, rel=0.06)
    assert errors.mean() == pytest.approx(0.0, abs=0.1)


def test_local_noise_would_be_three_times_as_much() -> None:
    """sqrt(10), which is what secure aggregation is for."""
    assert _errors(SecureTerms(seeded_bits(1))).std() < 10**0.5 / 2.9


def test_what_hides_nobody_is_refused() -> None:
    with pytest.raises(NoThresholds, match="two stories"):
        _errors(SecureTerms(seeded_bits(1), drop=5, collude=2))
    with pytest.raises(NoThresholds, match="fewer than three"):
        _errors(SecureTerms(seeded_bits(1)), sites=2)
