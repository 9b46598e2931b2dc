"""Clipping and noise: the mathematics, the edge cases, and the known wrong versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

from core.privacy.clipping import ROUNDING, ClipRule, clip_factors
from core.privacy.mechanism import clip_parts, clip_rows, clip_rule, noised, sensitivity
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


GROUPS = np.array(["trunk"] * 2 + ["heads"] * 3 + ["encoder"] * 4)
RULES = st.builds(
    ClipRule,
    st.floats(1e-6, 1e6),
    st.dictionaries(
        st.sampled_from(["trunk", "heads", "encoder"]), st.just(0.0) | st.floats(1e-6, 1e6)
    ),
    st.none() | st.floats(1e-6, 1e6),
)


@given(hnp.arrays(np.float64, (4, 9), elements=st.floats(-1e100, 1e100) | st.just(np.nan)), RULES)
@settings(max_examples=200, deadline=None)
def test_every_part_ends_within_its_clip_norm(rows: NDArray[np.float64], rule: ClipRule) -> None:
    before = rows.copy()
    clipped = clip_parts(rows, GROUPS, rule)
    np.testing.assert_array_equal(rows, before)
    assert not clipped[~np.isfinite(rows).all(axis=1)].any()
    parts = np.array([rule.part(str(group)) for group in GROUPS])
    for part in set(parts.tolist()):
        lengths = np.linalg.norm(clipped[:, parts == part], axis=1)
        assert (lengths <= rule.norm_of(part)).all()
    assert (np.linalg.norm(clipped, axis=1) <= rule.sensitivity(GROUPS) * (1 + 1e-12)).all()


@given(hnp.arrays(np.float64, 5, elements=ANY_FLOAT.map(abs)), RULES)
@settings(max_examples=200, deadline=None)
def test_factors_of_any_norm_are_finite_and_bounded(
    norms: NDArray[np.float64], rule: ClipRule
) -> None:
    for part in ("joint", *rule.blocks):
        factors = rule.factors(part, norms)
        assert np.isfinite(factors).all()
        assert (factors >= 0).all()
        assert not factors[~np.isfinite(norms)].any()
        finite = np.isfinite(norms)
        assert (factors[finite] * norms[finite] <= rule.norm_of(part)).all()


def test_automatic_clipping_is_the_published_formula() -> None:
    rule = ClipRule(2.0, {"trunk": 0.5}, 0.1)
    norms = np.array([0.0, 0.1, 3.0, np.nan, np.inf])
    expected = [20.0, 10.0, 2.0 / 3.1, 0.0, 0.0]
    np.testing.assert_allclose(rule.factors("joint", norms), expected, rtol=1e-6)
    np.testing.assert_allclose(rule.factors("trunk", norms), np.array(expected) / 4, rtol=1e-6)


def test_parts_are_the_groups_with_a_norm_of_their_own_and_the_rest() -> None:
    rule = ClipRule(3.0, {"trunk": 4.0, "prior": 12.0})
    assert rule.sensitivity(["trunk", "heads", "encoder"]) == 5.0
    assert rule.sensitivity(["trunk", "heads", "prior"]) == 13.0
    assert rule.sensitivity(["trunk", "prior"]) == pytest.approx(160**0.5)  # there is no rest
    row = np.full((1, 9), 100.0)
    clipped = clip_parts(row, GROUPS, rule)
    assert np.linalg.norm(clipped[0, :2]) == pytest.approx(4.0)
    assert np.linalg.norm(clipped[0, 2:]) == pytest.approx(3.0)
    short = clip_parts(row / 1e4, GROUPS, rule)
    np.testing.assert_array_equal(short, row / 1e4)
    assert 1 - 1e-6 < ROUNDING < 1


def test_a_plan_says_how_its_rounds_clip() -> None:
    plain = worlds.spec(privacy={"clip_norm": 0.7, "automatic_gamma": 0.5})
    assert clip_rule(plain.plan.privacy) == ClipRule(0.7, {"classifier": 2.0})
    blocks = {"trunk": 0.3, "encoder": 0.4}
    spec = worlds.spec(
        privacy={
            "clip_norm": 1.2, "block_clip_norms": blocks, "clipping": "automatic",
            "automatic_gamma": 0.5, "classifier_clip_norm": 0.0,
        }
    )  # fmt: skip
    assert clip_rule(spec.plan.privacy) == ClipRule(1.2, blocks | {"classifier": 0.0}, 0.5)
    assert sensitivity(spec, 1) == pytest.approx(1.3)


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
    spec = worlds.spec(privacy={"clip_norm": 0.7, "classifier_clip_norm": 2.4})
    assert sensitivity(spec, 1) == pytest.approx(2.5)  # the classifier is clipped apart
    without = worlds.spec(privacy={"clip_norm": 0.7}, model={"classifier": "none"})
    assert sensitivity(without, 1) == 0.7
    alone = worlds.spec(privacy={"clip_norm": 0.0, "classifier_clip_norm": 2.4})
    assert sensitivity(alone, 1) == 2.4
    weights = spec.plan.sketch
    assert sensitivity(spec, 0) ** 2 == pytest.approx(
        weights.count_weight**2 + weights.mean_weight**2
    )
