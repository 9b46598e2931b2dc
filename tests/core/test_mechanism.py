"""Clipping and noise: the mathematics, the edge cases, and the known wrong versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

from core.privacy.clipping import clip_factors
from core.privacy.mechanism import clip_rows, noised, sensitivity
from core.privacy.noise import csprng, seeded
from tests.core import worlds

ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(
    hnp.arrays(
        np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=ANY_FLOAT
    ),
    st.floats(1e-6, 1e6),
)
@settings(max_examples=300, deadline=None)
def test_every_row_ends_within_the_clip_norm(rows: NDArray[np.float64], bound: float) -> None:
    clipped = clip_rows(rows, bound)
    assert np.isfinite(clipped).all()
    assert (np.linalg.norm(clipped, axis=1) <= bound).all()
    broken = ~np.isfinite(rows).all(axis=1)
    assert not clipped[broken].any()


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(-0.4, 0.4)))
@settings(deadline=None)
def test_short_rows_are_left_alone(rows: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(clip_rows(rows, 1.0), rows)


def test_long_rows_keep_their_direction() -> None:
    row = np.array([[3.0, -4.0]])
    np.testing.assert_allclose(clip_rows(row, 1.0), row / 5.0, rtol=1e-6)


def test_edge_case_table() -> None:
    rows = np.array([[0.0, 0.0], [1e308, 1e308], [np.nan, 1.0], [np.inf, 0.0], [1e-320, 0.0]])
    clipped = clip_rows(rows, 2.0)
    assert not clipped[[0, 2, 3]].any()
    assert np.linalg.norm(clipped[1]) == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_array_equal(clipped[4], rows[4])
    assert clip_rows(np.zeros((0, 5)), 1.0).sum(axis=0).tolist() == [0.0] * 5


def test_defect_naive_factor_lets_nan_and_zero_through() -> None:
    """Trap 8: min(1, C / |g|)."""
    norms = np.array([0.0, np.nan])
    with np.errstate(divide="ignore"):
        naive = np.minimum(1.0, 1.0 / norms)
    assert np.isnan(naive[1])
    assert clip_factors(norms, 1.0).tolist() == [1.0, 0.0]


def test_noise_has_the_promised_variance_everywhere_and_is_gaussian() -> None:
    update = noised(
        np.zeros(20_000), null_coordinates=256, noise_multiplier=1.5, bound=2.0, noise=csprng()
    )
    scaled = update.astype(np.float64) / 3.0
    assert update.dtype == np.float32
    assert update.size == 20_256
    assert stats.kstest(scaled, "norm").pvalue > 1e-6
    assert float(scaled @ scaled) == pytest.approx(scaled.size, rel=0.05)


def test_noise_is_fresh_for_every_release() -> None:
    """Rounds, clients and blocks: no two releases share a draw, also not their correlation."""
    draws = np.stack([csprng().normal(4_000, 1.0) for _ in range(6)])
    correlations = np.corrcoef(draws)[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(4_000)
    source = csprng()
    again = np.corrcoef(source.normal(4_000, 1.0), source.normal(4_000, 1.0))[0, 1]
    assert abs(again) < 5.5 / np.sqrt(4_000)


def test_noise_ignores_the_frameworks_seeds() -> None:
    """Trap 7: seeding numpy and torch must not make a release reproducible."""
    import torch

    draws = []
    for _ in range(2):
        np.random.seed(0)
        torch.manual_seed(0)
        draws.append(csprng().normal(16, 1.0))
    assert not np.array_equal(*draws)
    assert csprng().private
    assert not seeded(1).private
    np.testing.assert_array_equal(seeded(1).normal(4, 1.0), seeded(1).normal(4, 1.0))


@pytest.mark.parametrize("multiplier", [0.0, -1.0, np.nan, np.inf])
def test_a_release_without_noise_is_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise multiplier"):
        noised(
            np.zeros(3), null_coordinates=1, noise_multiplier=multiplier, bound=1, noise=csprng()
        )


def test_sensitivities_are_those_of_the_plan() -> None:
    spec = worlds.spec(privacy={"clip_norm": 0.7})
    assert sensitivity(spec, 1) == 0.7
    weights = spec.plan.sketch
    assert sensitivity(spec, 0) ** 2 == pytest.approx(
        weights.count_weight**2 + weights.mean_weight**2
    )
