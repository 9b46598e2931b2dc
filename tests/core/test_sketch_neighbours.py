"""Coupled neighbours for everything that the sketch rounds release, through the real function.

D and D' (one unit less) see the same released transcript; the query before noise must not move by
more than its stated sensitivity, for any data set, plan or frame that hypothesis can think of.
Each defective version below must break the bound under the same measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import Noise, RunSpec
from core.federation.updates import expectation, read_update
from core.models.build import build
from core.models.frame import Frame
from core.models.layout import layout_of, sketch_layout
from core.privacy.coins import CoinStream
from core.privacy.mechanism import sensitivity
from core.privacy.noise import seeded
from core.training.local import clipped_total, release
from core.training.sketch import clipped_sketch
from tests.core import worlds
from tests.core.test_neighbours import TOLERANCE, awkward, worst

Vector = NDArray[np.float64]
Query = Callable[[EmbeddingDataset], Vector]
NOISE = Noise(sketch_multiplier=2.0, spread_multiplier=2.0, train_multiplier=1.0)


def plan_of(refine: float = 0.5, steps: int = 2, **sketch: Any) -> RunSpec:
    privacy: dict[str, Any] = {"sketch_steps": steps, "rounds": 0}
    if steps == 2:
        privacy["refine_share"] = refine
    noise = NOISE if steps == 2 else NOISE.model_copy(update={"spread_multiplier": None})
    spec = worlds.spec(noise=noise, privacy=privacy)
    chosen = spec.plan.sketch.model_copy(update=sketch)
    return spec.model_copy(update={"plan": spec.plan.model_copy(update={"sketch": chosen})})


def transcript(spec: RunSpec, seed: int, absurd: float = 0.0) -> dict[str, bytes]:
    """A published frame; ``absurd`` base means are what a hostile coordinator could send."""
    draw = np.random.default_rng(seed)
    size = sketch_layout(spec).size
    frame = build(spec, [30 * draw.normal(size=size) for _ in range(2)], ["a", "b"], ["a", "b"])
    if absurd:
        frame = replace(frame, base=absurd * draw.normal(size=frame.base.shape))
    return {"frame": frame.to_bytes(spec.digest)}


def query_of(spec: RunSpec, number: int, inputs: dict[str, bytes]) -> Query:
    coins = CoinStream(worlds.SECRET, spec.run_id, number, 1)
    return lambda data: clipped_total(spec, number, "a", data, inputs, coins)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(9, 30),
    groups=st.integers(0, 8),
    steps=st.sampled_from([1, 2]),
    refine=st.sampled_from([0.0, 0.35, 1.0]),
    radius=st.floats(0.05, 2.0),
    weights=st.tuples(*[st.sampled_from([0.0, 0.3, 2.0])] * 2),
    projected_radius=st.floats(0.05, 1.0),
    absurd=st.sampled_from([0.0, 1.0, 1e6]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_sketch_query_stays_within_its_sensitivity(
    seed: int,
    n: int,
    groups: int,
    steps: int,
    refine: float,
    radius: float,
    weights: tuple[float, float],
    projected_radius: float,
    absurd: float,
) -> None:
    spec = plan_of(
        refine, steps, residual_radius=radius, projected_weight=weights[0], projected_rank=5,
        projected_radius=projected_radius, feature_weight=weights[1], feature_pairs=4,
    )  # fmt: skip
    data = awkward(seed, n)
    if groups:
        units = np.random.default_rng(seed).integers(0, groups, n)
        data = worlds.with_units(data, units)
    inputs = transcript(spec, seed, absurd)
    for number in range(spec.last_round + 2):  # all sketch rounds, then a join
        moved = worst(query_of(spec, number, inputs), data)
        assert moved <= sensitivity(spec, number) * TOLERANCE, spec.kind(number)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_bound_is_attained_so_no_noise_is_wasted(number: int) -> None:
    spec = plan_of(residual_radius=0.4)
    query = query_of(spec, number, transcript(spec, 3))
    moved = worst(query, worlds.clusters(20, spread=3.0))
    assert moved >= 0.99 * sensitivity(spec, number)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_relabelling_a_unit_moves_at_most_twice_the_bound(number: int) -> None:
    spec = plan_of()
    query, data = query_of(spec, number, transcript(spec, 4)), worlds.clusters(15)
    for row in range(len(data)):
        labels = data.y.copy()
        labels[row] = (labels[row] + 1) % 3
        other = EmbeddingDataset.from_arrays(data.x, labels, data.unit)
        moved = float(np.linalg.norm(query(data) - query(other)))
        assert moved <= 2 * sensitivity(spec, number) * TOLERANCE


@pytest.mark.parametrize("number", [0, 1, 2])
def test_empty_and_one_class_sites_are_ordinary(number: int) -> None:
    spec = plan_of(feature_weight=0.5, projected_weight=0.5)
    query, data = query_of(spec, number, transcript(spec, 5)), worlds.clusters(6)
    assert not query(EmbeddingDataset.from_arrays(data.x[:0], data.y[:0])).any()
    only = EmbeddingDataset.from_arrays(data.x, np.zeros(6, dtype=np.int64))
    assert np.isfinite(query(only)).all()


# --- known wrong versions, each caught ---


def caught(defective: Query, data: EmbeddingDataset, bound: float) -> bool:
    return worst(defective, data) > bound * TOLERANCE


def test_defect_a_fixed_share_by_position() -> None:
    """The last tenth as a validation sketch: removing one unit re-assigns another."""
    spec, data = plan_of(), worlds.clusters(30)

    def validation_and_rest(d: EmbeddingDataset) -> Vector:
        cut = len(d) - len(d) // 10
        first = EmbeddingDataset.from_arrays(d.x[:cut], d.y[:cut], d.unit[:cut])
        last = EmbeddingDataset.from_arrays(d.x[cut:], d.y[cut:], d.unit[cut:])
        return np.concatenate([clipped_sketch(spec, first), clipped_sketch(spec, last)])

    assert caught(validation_and_rest, data, sensitivity(spec, 0))


def test_defect_private_denominators() -> None:
    """Class means over the site's own exact counts: a singleton class moves by a whole mean."""
    spec = plan_of(count_weight=1e-3)

    def means(d: EmbeddingDataset) -> Vector:
        sketch = clipped_sketch(spec, d)
        counts = np.maximum(np.bincount(d.y, minlength=3), 1)
        return np.asarray(sketch[3:].reshape(3, -1) / counts[:, None] * 9).ravel()

    assert caught(means, worlds.clusters(9), sensitivity(spec, 0))


def test_defect_records_counted_one_by_one() -> None:
    spec = plan_of()
    data = worlds.with_units(worlds.clusters(27), np.arange(27) // 9)
    for number in (0, 1):
        query = query_of(spec, number, transcript(spec, 6))

        def unclipped(d: EmbeddingDataset, query: Query = query) -> Vector:
            return query(EmbeddingDataset.from_arrays(d.x, d.y))  # each record its own unit

        assert caught(unclipped, data, sensitivity(spec, number))
        assert not caught(query, data, sensitivity(spec, number))


def test_defect_data_derived_scaling() -> None:
    """Records over the site's longest one: who holds it scales everybody else."""
    spec, data = plan_of(), worlds.clusters(40)
    x = np.asarray(data.directions, np.float32)
    x[0] *= 100

    def scaled(d: EmbeddingDataset) -> Vector:
        lengths = np.linalg.norm(d.x, axis=1)
        sums = np.zeros((3, 12))
        np.add.at(sums, d.y, d.x / lengths.max())
        return sums.ravel()

    far = EmbeddingDataset.from_arrays(x, data.y)
    assert caught(scaled, far, sensitivity(spec, 0))


def test_defect_residuals_without_clipping() -> None:
    spec = plan_of(residual_radius=0.1)
    inputs = transcript(spec, 7)
    means = Frame.from_bytes(inputs["frame"]).base / np.sqrt(12)

    def unclipped(d: EmbeddingDataset) -> Vector:
        residuals = (d.directions - means[d.y]) / 0.1
        return np.asarray(np.sqrt(0.5) * (residuals.T @ residuals)).ravel()

    assert caught(unclipped, worlds.clusters(20), sensitivity(spec, 1))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_released_coordinate_carries_noise(number: int) -> None:
    """An exact histogram beside a noised rest would stay the same under another draw."""
    spec = plan_of(feature_weight=0.5, projected_weight=0.5)
    data, inputs = worlds.clusters(50), transcript(spec, 8)

    def sent(seed: int) -> Vector:
        made = release(spec, number, 1, "a", data, inputs, secret=worlds.SECRET, noise=seeded(seed))
        return np.asarray(read_update(made.update, expectation(spec, number)), np.float64)

    first, second = sent(1), sent(2)
    assert not (first == second).any()
    noise = first - second
    std = np.sqrt(2) * spec.event(number).noise_multiplier * sensitivity(spec, number)
    for name, part in layout_of(spec, number).split(noise).items():
        tolerance = 5 * std / np.sqrt(2 * part.size)
        assert np.std(part) == pytest.approx(std, abs=tolerance), name
    exact = np.bincount(data.y, minlength=3)
    defective = [np.concatenate([exact, vector[3:]]) for vector in (first, second)]
    assert (defective[0] == defective[1]).any()  # the same check catches it
