"""Step 2 of the sketch: its sensitivity, its wrong versions, and what the frame makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.utility import tstr
from core.federation.plan import MAX_JOINS, Noise, PrivacyPlan, RunSpec, calibrate
from core.models import symmetric
from core.models.build import build
from core.models.evidence import Evidence, from_sketches
from core.models.factors import shrunk_spectrum
from core.models.frame import Frame
from core.models.layout import spread_layout
from core.models.spread import with_spread
from core.privacy import accounting
from core.privacy.mechanism import sensitivity
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate
from core.synthesis.request import SynthesisRequest
from core.training.sketch import clipped_sketch
from core.training.spread import clipped_spread
from tests.core import worlds

TOLERANCE = 1 + 1e-6
TINY = Noise(sketch_multiplier=1e-6, spread_multiplier=1e-6, train_multiplier=1.0)
Query = Callable[[EmbeddingDataset], NDArray[np.float64]]


def two_steps(noise: Noise = TINY, radius: float = 0.7, refine: float = 0.5) -> RunSpec:
    spec = worlds.spec(noise=noise, privacy={"sketch_steps": 2, "refine_share": refine})
    sketch = spec.plan.sketch.model_copy(update={"residual_radius": radius})
    return spec.model_copy(update={"plan": spec.plan.model_copy(update={"sketch": sketch})})


def moments_of(spec: RunSpec, released: NDArray[np.float64]) -> NDArray[np.float64]:
    """The second-moment block, its weight and unit taken off: [d, d]."""
    weight = np.sqrt(1 - spec.plan.privacy.refinement) / spec.plan.sketch.residual_radius**2
    packed = spread_layout(spec).split(released)["moments"]
    return symmetric.unpack(packed, spec.space.dim) / weight


def frame_of(spec: RunSpec, data: EmbeddingDataset) -> Frame:
    return build(spec, [clipped_sketch(spec, data)] * 2, ["a", "b"], ["a", "b"])


def evidence_of(spec: RunSpec, data: EmbeddingDataset) -> Evidence:
    return from_sketches(spec, [clipped_sketch(spec, data)] * 2)


def worst(query: Query, data: EmbeddingDataset) -> float:
    whole = query(data)
    return max(
        float(np.linalg.norm(whole - query(worlds.without_unit(data, unit))))
        for unit in data.unit_ids
    )


def test_with_factors_a_longer_request_begins_with_the_shorter() -> None:
    spec = worlds.spec(
        noise=TINY.model_copy(update={"sketch_multiplier": 1e-3, "spread_multiplier": 1e-3}),
        privacy={"sketch_steps": 2, "rounds": 0},
    )
    sites = [SimulatedSite(name, worlds.clusters(200, seed=i)) for i, name in enumerate("ab")]
    generator = simulate(spec, sites, noise=seeded(1)).generator
    assert len(generator.frame.factors)
    short, long = (generator.sample(SynthesisRequest(run="r", n=n), 5).x for n in (10, 30))
    np.testing.assert_array_equal(long[:10], short)


# --- the query ---


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(1, 8), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_spread_query_stays_within_its_sensitivity(
    seed: int, n: int, groups: int, refine: float
) -> None:
    spec = two_steps(refine=refine)
    data = worlds.clusters(n, seed=seed, spread=2.0)
    x = data.x.copy()
    x[0] = np.nan
    x[-1] *= -1e20
    data = EmbeddingDataset.from_arrays(x, data.y)
    frame = frame_of(spec, worlds.clusters(100))
    bound = sensitivity(spec, 1)
    assert bound == 1.0
    assert worst(lambda d: clipped_spread(spec, d, frame), data) <= bound * TOLERANCE
    units = np.random.default_rng(seed).integers(0, groups, n)
    several = worlds.with_units(data, units)
    assert worst(lambda d: clipped_spread(spec, d, frame), several) <= bound * TOLERANCE


def test_spread_is_the_slow_sum_over_records() -> None:
    spec = two_steps(radius=0.4)
    data, frame = worlds.clusters(30), frame_of(spec, worlds.clusters(50, seed=4))
    total, sums = np.zeros((12, 12)), np.zeros((3, 12))
    means = frame.base / np.sqrt(12)
    for x, y in zip(data.x.astype(np.float64), data.y, strict=True):
        r = x / np.linalg.norm(x) - means[y]
        r *= min(1.0, 0.4 / np.linalg.norm(r))
        total += np.outer(r, r)
        sums[y] += r
    released = clipped_spread(spec, data, frame)
    np.testing.assert_allclose(moments_of(spec, released), total, atol=1e-12)
    block = spread_layout(spec).split(released)["sums"]
    np.testing.assert_allclose(block * 0.4 / np.sqrt(0.5), sums, atol=1e-12)


def test_nobody_and_one_class_are_ordinary() -> None:
    spec = two_steps()
    data, frame = worlds.clusters(5), frame_of(spec, worlds.clusters(50))
    nobody = EmbeddingDataset.from_arrays(data.x[:0], data.y[:0])
    assert not clipped_spread(spec, nobody, frame).any()
    only = EmbeddingDataset.from_arrays(data.x, np.zeros(5, dtype=np.int64))
    assert np.isfinite(clipped_spread(spec, only, frame)).all()


def test_a_unit_that_sits_on_the_means_is_ordinary() -> None:
    """A coordinator that guesses a record must not see a failure when the guess is right."""
    spec = two_steps()
    centre = np.eye(12, dtype=np.float32)[:1]
    data = worlds.with_units(
        EmbeddingDataset.from_arrays(np.repeat(centre, 3, axis=0), np.zeros(3, dtype=np.int64)),
        np.zeros(3, dtype=np.int64),
    )
    frame = frame_of(spec, worlds.clusters(50))
    base = frame.base.copy()
    base[0] = np.sqrt(12) * centre[0]
    assert not clipped_spread(spec, data, replace(frame, base=base)).any()


def test_defect_residuals_around_private_means() -> None:
    """Centring on the site's own, un-noised means moves every other record's residual."""
    data = worlds.clusters(12)
    x = data.x.copy()
    x[0] = -x[data.y == data.y[0]].mean(axis=0) * 50
    data = EmbeddingDataset.from_arrays(x, data.y)
    bound = 0.1

    def defective(d: EmbeddingDataset) -> NDArray[np.float64]:
        total = np.zeros((12, 12))
        for label in np.unique(d.y):
            own = d.directions[d.y == label]
            r = own - own.mean(axis=0)
            r *= np.sqrt(bound) / np.maximum(np.linalg.norm(r, axis=1, keepdims=True), 1e-12)
            total += r.T @ r
        return symmetric.pack(total)

    assert worst(defective, data) > bound * TOLERANCE


def test_defect_units_clipped_record_by_record() -> None:
    spec = two_steps()
    data = worlds.with_units(worlds.clusters(27, spread=3.0), np.arange(27) // 9)
    frame = frame_of(spec, worlds.clusters(100))

    def defective(d: EmbeddingDataset) -> NDArray[np.float64]:
        records = EmbeddingDataset.from_arrays(d.x, d.y)
        return clipped_spread(spec, records, frame)

    assert worst(defective, data) > sensitivity(spec, 1) * TOLERANCE


# --- events ---


def test_two_sketch_steps_cost_what_one_would() -> None:
    privacy = PrivacyPlan(
        epsilon=2.0,
        delta=1e-5,
        n_max=100,
        rounds=0,
        sketch_steps=2,
        mean_share=0.6,
        refine_share=0.5,
    )
    noise = calibrate(privacy)
    spec = worlds.spec(privacy=privacy.model_dump(), noise=noise)
    assert [spec.kind(n) for n in range(2)] == ["sketch", "spread"]
    assert 2.0 * 0.985 <= accounting.epsilon(spec.events(), 1e-5) <= 2.0
    one = calibrate(
        privacy.model_copy(update={"sketch_steps": 1, "mean_share": None, "refine_share": None})
    ).sketch_multiplier
    assert noise.spread_multiplier is not None
    both = noise.sketch_multiplier**-2 + noise.spread_multiplier**-2
    assert both == pytest.approx(one**-2)


def test_rounds_are_numbered_after_the_sketches() -> None:
    spec = two_steps()
    assert [spec.kind(n) for n in range(5)] == ["sketch", "spread", "train", "train", "train"]
    assert spec.last_round == 4
    assert spec.event(1).sample_rate == 1.0
    assert spec.event(2).sample_rate == 0.5
    assert spec.kind(5) == "join"
    with pytest.raises(ValueError, match="rounds 0 to 4"):
        spec.kind(5 + MAX_JOINS)


def test_a_step_without_noise_is_no_event() -> None:
    spec = two_steps(Noise(sketch_multiplier=1.0, train_multiplier=1.0))
    with pytest.raises(ValueError, match="no noise multiplier for round 1"):
        spec.event(1)


# --- post-processing ---


def test_packing_keeps_the_norm_and_comes_back() -> None:
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    matrix = matrix + matrix.T
    packed = symmetric.pack(matrix)
    assert np.linalg.norm(packed) == pytest.approx(np.linalg.norm(matrix))
    np.testing.assert_allclose(symmetric.unpack(packed, 6), matrix)


def test_spectrum_drops_noise_and_keeps_spikes_with_their_trace() -> None:
    dim, sigma = 300, 1e-3
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(dim, dim)) * sigma
    noise = (np.triu(noise) + np.triu(noise, 1).T) * 1.0
    edge = sigma * np.sqrt(dim)
    flat, bulk = shrunk_spectrum(
        np.linalg.eigvalsh(np.eye(dim) * 0.002 + noise), 0.002 * dim, edge * 1.05
    )
    assert not flat.any()
    assert bulk == pytest.approx(0.002)
    spike = np.zeros(dim)
    spike[0] = 0.3
    values = np.linalg.eigvalsh(np.diag(spike) + np.eye(dim) * 0.002 + noise)
    kept, bulk = shrunk_spectrum(values, 0.3 + 0.002 * dim, edge * 1.05)
    assert (kept > 0).sum() == 1
    assert kept.max() == pytest.approx(0.3, rel=0.02)
    assert kept.sum() + bulk * dim == pytest.approx(0.3 + 0.002 * dim)


def test_frame_learns_the_covariance_of_residuals() -> None:
    spec = two_steps(radius=2.0)
    draw = np.random.default_rng(3)
    y = draw.integers(0, 3, 20_000)
    centres = np.eye(12)[:3]
    x = centres[y] + 0.05 * draw.normal(size=(20_000, 12))
    x[:, 5] += 0.4 * draw.normal(size=20_000)
    data = EmbeddingDataset.from_arrays(x, y)
    frame = frame_of(spec, data)
    moments = [clipped_spread(spec, data, frame)] * 2
    after = with_spread(spec, frame, evidence_of(spec, data), moments, ["a", "b"])
    assert abs(after.factors[0, 5]) > 0.98 * np.linalg.norm(after.factors[0])
    residuals = np.sqrt(12) * data.directions - after.base[data.y]
    whitened = after.whiten(residuals)
    assert np.cov(whitened.T).diagonal().max() < 1.3
    inside = after.colour(whitened)
    np.testing.assert_allclose(inside @ after.basis.T, residuals @ after.basis.T, atol=1e-9)
    again = Frame.from_bytes(after.to_bytes("sha256:x"))
    np.testing.assert_allclose(again.factors, after.factors, rtol=1e-6, atol=1e-7)


def test_pure_noise_stays_isotropic() -> None:
    spec = two_steps(Noise(sketch_multiplier=1.0, spread_multiplier=500.0, train_multiplier=1.0))
    data = worlds.clusters(200)
    frame = frame_of(spec, data)
    draw = np.random.default_rng(0)
    noise = [500 * draw.normal(size=spread_layout(spec).size) for _ in range(2)]
    after = with_spread(spec, frame, evidence_of(spec, data), noise, ["a", "b"])
    assert len(after.factors) <= 1
    assert after.scale[0] > 0
    assert np.isfinite(after.spread_root).all()


def test_two_steps_beat_one_where_classes_overlap_along_wide_directions() -> None:
    """Class means differ a little along wide directions: the spread says to ignore them."""

    def records(n: int, seed: int) -> EmbeddingDataset:
        draw = np.random.default_rng(seed)
        y = draw.integers(0, 3, n)
        x = 0.1 * draw.normal(size=(n, 12)) + np.eye(12)[y] * 0.35
        x[:, 3:5] += np.array([[0.3, 0], [-0.3, 0.1], [0, -0.3]])[y]
        x[:, 3:5] += 1.0 * draw.normal(size=(n, 2))
        return EmbeddingDataset.from_arrays(x, y)

    sites = [SimulatedSite(name, records(1_500, s)) for s, name in enumerate("ab")]
    test = records(2_000, 50)
    scores = []
    for steps in (1, 2):
        split = {"sketch_steps": steps}
        if steps == 2:
            split |= {"mean_share": 0.35, "refine_share": 0.5}
        privacy = PrivacyPlan.model_validate(
            {"epsilon": 4.0, "delta": 1e-5, "n_max": 2_000, "rounds": 0} | split
        )
        spec = worlds.spec(privacy=privacy.model_dump(), noise=calibrate(privacy))
        made = simulate(spec, sites, noise=seeded(1), secret=worlds.SECRET).generator
        rows = made.sample(SynthesisRequest(run="r", n=4_000), 0)
        scores.append(tstr(rows.x, rows.y, test.x, test.y).accuracy)
    assert scores[1] > scores[0] + 0.02


@pytest.mark.parametrize("mean_share", [0.65, 0.99])
def test_two_steps_never_pass_the_target(mean_share: float) -> None:
    privacy = PrivacyPlan(
        epsilon=0.1,
        delta=1e-6,
        n_max=1000,
        rounds=0,
        sketch_steps=2,
        mean_share=mean_share,
        refine_share=0.5,
    )
    spec = worlds.spec(privacy=privacy.model_dump(), noise=calibrate(privacy))
    assert 0.099 < accounting.epsilon(spec.events(), 1e-6) <= 0.1
