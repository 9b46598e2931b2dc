"""Blocks that a plan may add to the sketch: what a site sums, and what the frame makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.data import EmbeddingDataset
from core.federation.plan import Noise, RunSpec
from core.models import symmetric
from core.models.build import build
from core.models.features import fourier_features, frequencies, projection
from core.models.frame import Frame
from core.models.layout import sketch_layout
from core.models.mmd import released_mmd
from core.privacy.mechanism import sensitivity
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate
from core.synthesis.request import SynthesisRequest
from core.training.sketch import clipped_sketch
from tests.core import worlds

QUIET = Noise(sketch_multiplier=1e-6, train_multiplier=1.0)


def blocks(noise: Noise = QUIET, **sketch: Any) -> RunSpec:
    spec = worlds.spec(noise=noise, privacy={"rounds": 0})
    chosen = spec.plan.sketch.model_copy(update=sketch)
    return spec.model_copy(update={"plan": spec.plan.model_copy(update={"sketch": chosen})})


EVERYTHING = {
    "projected_weight": 0.5, "projected_rank": 6, "projected_radius": 0.5,
    "feature_weight": 0.7, "feature_pairs": 9,
}  # fmt: skip


def frame_of(spec: RunSpec, *sites: EmbeddingDataset) -> Frame:
    names = [f"s{i}" for i in range(len(sites))]
    return build(spec, [clipped_sketch(spec, site) for site in sites], names, names)


def test_every_block_is_the_slow_mean_over_a_units_records() -> None:
    spec = blocks(**EVERYTHING)
    data = worlds.with_units(worlds.clusters(17), np.arange(17) // 3)
    p, omega, weights = projection(spec), frequencies(spec), spec.plan.sketch
    counts, sums = np.zeros(3), np.zeros((3, 12))
    moments, features = np.zeros((6, 6)), np.zeros((3, 18))
    for unit in range(6):
        rows = np.flatnonzero(data.unit_of == unit)
        for row in rows:
            x = data.x[row].astype(np.float64)
            x /= np.linalg.norm(x)
            share = 1.0 / len(rows)
            counts[data.y[row]] += share
            sums[data.y[row]] += share * x
            inside = p @ x
            inside *= min(1.0, 0.5 / np.linalg.norm(inside))
            moments += share * np.outer(inside, inside) / 0.25
            wave = np.concatenate([np.cos(omega @ x), np.sin(omega @ x)]) / 3.0
            features[data.y[row]] += share * wave
    found = sketch_layout(spec).split(clipped_sketch(spec, data))
    np.testing.assert_allclose(found["counts"], weights.count_weight * counts)
    np.testing.assert_allclose(found["sums"], weights.mean_weight * sums, atol=1e-12)
    np.testing.assert_allclose(symmetric.unpack(found["projected"], 6), 0.5 * moments, atol=1e-12)
    np.testing.assert_allclose(found["features"], 0.7 * features, atol=1e-12)
    assert sensitivity(spec, 0) == pytest.approx(np.sqrt(0.09 + 1 + 0.25 + 0.49))


def test_features_have_length_one_and_their_products_are_the_kernel() -> None:
    spec = blocks(feature_weight=1.0, feature_pairs=30_000)
    a, b = np.eye(12)[0], np.array([0.6, 0.8, *np.zeros(10)])
    first, second = fourier_features(np.stack([a, b]), frequencies(spec))
    assert np.linalg.norm(first) == pytest.approx(1.0)
    squared = np.sum((a - b) ** 2)
    kernel = np.mean([np.exp(-squared / (2 * s**2)) for s in (0.5, 1.0, 2.0)])
    assert first @ second == pytest.approx(kernel, abs=0.01)


def test_public_directions_are_orthonormal_and_of_the_plans_seed() -> None:
    spec = blocks(projected_weight=1.0, projected_rank=5)
    np.testing.assert_allclose(projection(spec) @ projection(spec).T, np.eye(5), atol=1e-12)
    np.testing.assert_array_equal(projection(spec), projection(spec))
    other = spec.model_copy(update={"plan": spec.plan.model_copy(update={"seed": 5})})
    assert not np.allclose(projection(spec), projection(other))


def test_the_frame_spreads_along_wide_public_directions_without_a_second_step() -> None:
    """All 12 directions are public here, so the released moment shows the wide one."""
    draw = np.random.default_rng(3)
    y = draw.integers(0, 3, 20_000)
    x = np.eye(12)[y] + 0.05 * draw.normal(size=(20_000, 12))
    x[:, 5] += 0.4 * draw.normal(size=20_000)
    spec = blocks(projected_weight=1.0, projected_rank=12)
    frame = frame_of(spec, EmbeddingDataset.from_arrays(x, y))
    assert abs(frame.factors[0, 5]) > 0.98 * np.linalg.norm(frame.factors[0])
    total = frame.scale[0] ** 2 + np.sum(frame.factors**2) / 12
    means = frame.base / np.sqrt(12)
    assert total == pytest.approx(1 - frame.class_probs @ np.sum(means**2, axis=1), rel=1e-6)
    plain = frame_of(blocks(), EmbeddingDataset.from_arrays(x, y))
    assert not len(plain.factors)


def test_projected_noise_alone_makes_no_factors() -> None:
    spec = blocks(
        Noise(sketch_multiplier=300.0, train_multiplier=1.0),
        projected_weight=1.0,
        projected_rank=12,
    )
    draw = np.random.default_rng(0)
    size, std = sketch_layout(spec).size, 300 * sensitivity(spec, 0)
    frame = build(spec, [std * draw.normal(size=size) for _ in range(2)], list("ab"), list("ab"))
    assert len(frame.factors) <= 1
    frame.require(spec)


def test_released_mmd_is_near_zero_for_the_data_and_grows_with_distance() -> None:
    spec = blocks(feature_weight=0.5)
    data = worlds.clusters(2_000, seed=1)
    frame = Frame.from_bytes(frame_of(spec, data).to_bytes(spec.digest))
    fresh = worlds.clusters(2_000, seed=2)
    same = released_mmd(spec, frame, fresh.x, fresh.y)
    wrong = released_mmd(spec, frame, fresh.x, (fresh.y + 1) % 3)
    assert abs(same) < 0.01 < wrong
    noisy = blocks(Noise(sketch_multiplier=20.0, train_multiplier=1.0), feature_weight=0.5)
    draw = np.random.default_rng(0)
    values = []
    for _ in range(30):
        noise = 20 * sensitivity(noisy, 0) * draw.normal(size=sketch_layout(noisy).size)
        one = build(noisy, [clipped_sketch(noisy, data) + noise], ["a"], ["a"])
        values.append(released_mmd(noisy, one, fresh.x, fresh.y))
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(30) + 0.01  # noise is taken off


def test_released_mmd_says_what_it_lacks() -> None:
    spec = blocks()
    data = worlds.clusters(50)
    with pytest.raises(ValueError, match="feature_weight"):
        released_mmd(spec, frame_of(spec, data), data.x, data.y)
    with_features = blocks(feature_weight=1.0)
    with pytest.raises(ValueError, match="no rows"):
        released_mmd(with_features, frame_of(with_features, data), data.x[:0], data.y[:0])


def test_a_run_with_every_block_goes_through_all_rounds() -> None:
    noise = Noise(sketch_multiplier=0.5, spread_multiplier=0.5, train_multiplier=1.0)
    spec = worlds.spec(noise=noise, privacy={"rounds": 2, "sketch_steps": 2})
    chosen = spec.plan.sketch.model_copy(update=EVERYTHING)
    spec = spec.model_copy(update={"plan": spec.plan.model_copy(update={"sketch": chosen})})
    sites = [SimulatedSite(name, worlds.clusters(200, seed=i)) for i, name in enumerate("ab")]
    generator = simulate(spec, sites, noise=seeded(1), secret=worlds.SECRET).generator
    rows = generator.sample(SynthesisRequest(run="r", mixture={"a": 0.5, "b": 0.5}, n=100), 0)
    assert np.isfinite(rows.x).all()
    assert np.isfinite(released_mmd(spec, generator.frame, rows.x, rows.y))
