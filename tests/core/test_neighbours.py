"""Coupled neighbours: the query before noise on D and D' moves by at most its sensitivity.

Both data sets see the same released transcript and the same secret stream; D' lacks one unit.
Each defective version below is one that public implementations have; the fuzzer must catch it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models.architecture import architecture_of
from core.models.build import build
from core.models.frame import Frame
from core.models.generator import initial_weights
from core.models.hypernetwork import HyperCVAE
from core.models.layout import sketch_layout, train_layout
from core.privacy.coins import CoinStream
from core.privacy.mechanism import clip_rows, sensitivity
from core.training.compute import Compute
from core.training.gradients import Batch, clipped_sum
from core.training.sketch import clipped_sketch
from tests.core import worlds

TOLERANCE = 1 + 1e-6
Query = Callable[[EmbeddingDataset], NDArray[np.float64]]


def frame_for(spec: RunSpec) -> Frame:
    draw = np.random.default_rng(5)
    sketches = [50 * draw.normal(size=sketch_layout(spec).size) for _ in range(2)]
    return build(spec, sketches, ["a", "b"], ["a", "b"])


def awkward(seed: int, n: int = 24) -> EmbeddingDataset:
    """Extremes, wrong scales, NaN, infinities, zeros, duplicates and a singleton class."""
    data = worlds.clusters(n, seed=seed)
    x, y = data.x.copy(), data.y.copy()
    y[y == 2] = 1
    y[0] = 2
    x[1] *= 1e30
    x[2] = np.nan
    x[3, 0] = np.inf
    x[4] = 0.0
    x[5] = x[6]
    y[5] = y[6]
    x[7] = -x[8]
    return EmbeddingDataset.from_arrays(x, y)


def movement(query: Query, data: EmbeddingDataset, unit: bytes) -> float:
    return float(np.linalg.norm(query(data) - query(worlds.without_unit(data, unit))))


def worst(query: Query, data: EmbeddingDataset) -> float:
    return max(movement(query, data, unit) for unit in data.unit_ids)


def transcript_queries(spec: RunSpec, data: EmbeddingDataset, rounds: int) -> list[Query]:
    """One query a round; the iterates are moved by what D released (post-processing)."""
    frame = frame_for(spec)
    weights = initial_weights(spec)
    draw = np.random.default_rng(0)
    queries: list[Query] = []
    for number in range(1, rounds + 1):
        coins = CoinStream(worlds.SECRET, spec.run_id, number, 1)

        def query(
            d: EmbeddingDataset, w: NDArray[np.float64] = weights, c: CoinStream = coins
        ) -> NDArray[np.float64]:
            return clipped_sum(spec, d, frame, w, "a", c)

        queries.append(query)
        weights = weights - 0.1 * (query(data) + draw.normal(size=weights.size))
    return queries


# --- ours ---


@pytest.mark.parametrize("rounds", [1, 5, 50])
def test_training_query_stays_within_the_clip_norm(rounds: int) -> None:
    spec = worlds.spec(privacy={"rounds": 50, "sample_rate": 0.7, "clip_norm": 0.3})
    data = awkward(rounds)
    query = transcript_queries(spec, data, rounds)[-1]
    moved = worst(query, data)
    assert 0 < moved <= 0.3 * TOLERANCE


@given(st.integers(0, 1000), st.integers(2, 30), st.floats(0.05, 1.0), st.integers(1, 6))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_training_query_with_units_of_several_records(
    seed: int, n: int, rate: float, groups: int
) -> None:
    spec = worlds.spec(privacy={"sample_rate": rate})
    data = worlds.with_units(
        worlds.clusters(n, seed=seed), np.random.default_rng(seed).integers(0, groups, n)
    )
    query = transcript_queries(spec, data, 2)[-1]
    assert worst(query, data) <= spec.plan.privacy.clip_norm * TOLERANCE


@given(st.integers(0, 1000), st.integers(9, 40), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_sketch_query_stays_within_its_sensitivity(seed: int, n: int, groups: int) -> None:
    spec = worlds.spec()
    bound = sensitivity(spec, 0) * TOLERANCE
    data = awkward(seed, n)
    assert worst(lambda d: clipped_sketch(spec, d), data) <= bound
    several = worlds.with_units(data, np.random.default_rng(seed).integers(0, groups, n))
    assert worst(lambda d: clipped_sketch(spec, d), several) <= bound


def test_empty_and_one_class_sites_are_ordinary() -> None:
    spec = worlds.spec()
    data = worlds.clusters(6)
    nobody = EmbeddingDataset.from_arrays(data.x[:0], data.y[:0])
    only = EmbeddingDataset.from_arrays(data.x, np.zeros(6, dtype=np.int64))
    query = transcript_queries(spec, data, 1)[0]
    assert not query(nobody).any()
    assert not clipped_sketch(spec, nobody).any()
    assert np.isfinite(query(only)).all()


def test_a_nan_record_contributes_nothing_and_harms_nobody() -> None:
    spec = worlds.spec(privacy={"sample_rate": 1.0})
    data = worlds.clusters(10)
    x = data.x.copy()
    x[3] = np.nan
    poisoned = EmbeddingDataset.from_arrays(x, data.y, data.unit)
    query = transcript_queries(spec, data, 1)[0]
    rest = worlds.without_unit(data, data.unit[3])
    np.testing.assert_allclose(query(poisoned), query(rest), atol=1e-6)
    np.testing.assert_array_equal(clipped_sketch(spec, poisoned), clipped_sketch(spec, rest))
    assert poisoned.invalid_rows == [3]


# --- the reference: one record at a time, in float64 ---


def gradient_rows(
    batch: Batch,
    weights: NDArray[np.float64],
    reduce: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.sum,
) -> NDArray[np.float64]:
    """[n, P] gradients of a batch's records, one at a time, by autograd in float64."""
    module = HyperCVAE(architecture_of(batch.spec)).double()
    parts = train_layout(batch.spec).split(weights)
    module.load({name: torch.from_numpy(np.array(part)) for name, part in parts.items()})
    rows = []
    for place in range(len(batch.rows)):
        inputs = batch.inputs(np.array([place]))
        codes = batch.codes[batch.code_of[[place]]]
        module.zero_grad()
        reduce(module(*[torch.from_numpy(part) for part in (*inputs, codes)])).backward()
        rows.append(torch.cat([p.grad.flatten() for p in module.parameters()]).numpy())
    return np.array(rows).reshape(-1, train_layout(batch.spec).size)


def by_unit(batch: Batch, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[U, P] sums of [n, P] over the records of each unit."""
    units, place = np.unique(batch.unit_of, return_inverse=True)
    total = np.zeros((len(units), rows.shape[1]))
    np.add.at(total, place, rows)
    return total


def slow_sum(
    spec: RunSpec, data: EmbeddingDataset, frame: Frame, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    batch = Batch.draw(spec, data, frame, "a", CoinStream(worlds.SECRET, spec.run_id, 1, 1))
    gradients = by_unit(batch, gradient_rows(batch, weights))
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return (gradients * np.minimum(1.0, spec.plan.privacy.clip_norm / norms)).sum(axis=0)


@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
def test_clipped_sum_is_that_of_a_loop_over_records(clip_norm: float) -> None:
    spec = worlds.spec(privacy={"clip_norm": clip_norm, "sample_rate": 0.6})
    data = worlds.with_units(
        worlds.clusters(40, seed=3), np.random.default_rng(3).integers(0, 15, 40)
    )
    frame = frame_for(spec)
    weights = initial_weights(spec) + 0.1 * np.random.default_rng(1).normal(
        size=train_layout(spec).size
    )
    coins = CoinStream(worlds.SECRET, spec.run_id, 1, 1)
    ours = clipped_sum(spec, data, frame, weights, "a", coins)
    reference = slow_sum(spec, data, frame, weights)
    assert np.linalg.norm(ours - reference) <= 1e-5 * np.linalg.norm(reference)


def test_chunks_do_not_change_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = worlds.spec(privacy={"sample_rate": 1.0})
    # Units of four records and one of twenty, which is more than a chunk.
    data = worlds.with_units(worlds.clusters(60), np.maximum(np.arange(60), 20) // 4)
    frame, weights = frame_for(spec), initial_weights(spec)
    coins = CoinStream(worlds.SECRET, spec.run_id, 1, 1)
    slow = Compute(engine="opacus")

    def query() -> NDArray[np.float64]:
        return clipped_sum(spec, data, frame, weights, "a", coins, compute=slow)

    whole = query()
    monkeypatch.setattr("core.training.reference._CHUNK_RECORDS", 7)
    np.testing.assert_allclose(query(), whole, atol=1e-5)
    monkeypatch.setattr("core.training.reference._CHUNK_NUMBERS", 1)
    np.testing.assert_allclose(query(), whole, atol=1e-5)


# --- known wrong versions, each caught ---


def gradients_of(spec: RunSpec, data: EmbeddingDataset, frame: Frame) -> NDArray[np.float64]:
    """Per-record gradients [n, P] under the honest coins, by autograd."""
    coins = CoinStream(worlds.SECRET, spec.run_id, 1, 1)
    neutral = coins.bernoulli("code-dropout", data.unit_ids, spec.plan.model.code_dropout)
    return _loop(spec, data, frame, neutral, lambda loss, batch: loss.sum())


def _loop(
    spec: RunSpec,
    data: EmbeddingDataset,
    frame: Frame,
    neutral: NDArray[np.bool_],
    reduce: Callable[[torch.Tensor, int], torch.Tensor],
) -> NDArray[np.float64]:
    coins = CoinStream(worlds.SECRET, spec.run_id, 1, 1)
    batch = Batch(spec, data, frame, coins, frame.code("a"), np.arange(len(data)), neutral)
    return gradient_rows(batch, initial_weights(spec), lambda loss: reduce(loss, len(data)))


def test_defect_whole_batch_clipped_as_one_example() -> None:
    """Trap 2: one hypernetwork forward a batch; hooks see batch size 1; scaled by the batch."""
    spec = worlds.spec(privacy={"clip_norm": 0.1})
    frame, data = frame_for(spec), worlds.clusters(20)

    def defective(d: EmbeddingDataset) -> NDArray[np.float64]:
        total = gradients_of(spec, d, frame).sum(axis=0, keepdims=True)
        return clip_rows(total, 0.1).sum(axis=0) * len(d)

    assert worst(defective, data) > 0.1 * TOLERANCE


def test_defect_first_k_of_the_batch_are_neutral() -> None:
    """A fixed share by batch position: removing one unit re-assigns another."""
    spec = worlds.spec(privacy={"clip_norm": 0.1})
    frame, data = frame_for(spec), worlds.clusters(20)

    def defective(d: EmbeddingDataset) -> NDArray[np.float64]:
        neutral = np.arange(len(d.unit_ids)) < 0.5 * len(d.unit_ids)
        rows = _loop(spec, d, frame, neutral, lambda loss, batch: loss.sum())
        return clip_rows(rows, 0.1).sum(axis=0)

    assert worst(defective, data) > 0.1 * TOLERANCE


def test_defect_coins_by_batch_position() -> None:
    """Latent draws or inclusion from one running stream: everyone behind the removed one moves."""
    spec = worlds.spec(privacy={"clip_norm": 0.1})
    frame, data = frame_for(spec), worlds.clusters(20)

    def defective(d: EmbeddingDataset) -> NDArray[np.float64]:
        neutral = np.random.default_rng(0).random(len(d.unit_ids)) < 0.5
        rows = _loop(spec, d, frame, neutral, lambda loss, batch: loss.sum())
        return clip_rows(rows, 0.1).sum(axis=0)

    assert worst(defective, data) > 0.1 * TOLERANCE


def test_defect_loss_divided_by_the_batch() -> None:
    """Trap 6: a mean-reduced loss makes every record's gradient depend on how many there are."""
    spec = worlds.spec(privacy={"clip_norm": 1e6})
    frame, data = frame_for(spec), worlds.clusters(12)
    neutral = np.zeros(12, dtype=bool)
    full = _loop(spec, data, frame, neutral, lambda loss, batch: loss.sum() / batch)
    fewer = worlds.without_unit(data, data.unit_ids[0])
    part = _loop(spec, fewer, frame, neutral[1:], lambda loss, batch: loss.sum() / batch)
    keep = [i for i, u in enumerate(data.unit) if u != data.unit_ids[0]]
    assert not np.allclose(full[keep], part)  # ours: the next test


def test_a_records_gradient_does_not_depend_on_its_neighbours() -> None:
    spec = worlds.spec(privacy={"sample_rate": 1.0, "clip_norm": 1e6})
    data = worlds.clusters(12)
    query = transcript_queries(spec, data, 1)[0]
    one = EmbeddingDataset.from_arrays(data.x[:1], data.y[:1], data.unit[:1])
    rest = worlds.without_unit(data, data.unit[0])
    np.testing.assert_allclose(query(data), query(rest) + query(one), atol=1e-3)


def test_defect_clipping_records_instead_of_units() -> None:
    """A patient of nine records would count nine times."""
    spec = worlds.spec(privacy={"clip_norm": 0.1})
    frame = frame_for(spec)
    data = worlds.with_units(worlds.clusters(27), np.arange(27) // 9)

    def defective(d: EmbeddingDataset) -> NDArray[np.float64]:
        return clip_rows(gradients_of(spec, d, frame), 0.1).sum(axis=0)

    assert worst(defective, data) > 0.1 * TOLERANCE


def test_defect_sketch_without_unit_clipping() -> None:
    spec = worlds.spec()
    data = worlds.with_units(worlds.clusters(27), np.arange(27) // 9)
    records = EmbeddingDataset.from_arrays  # each record its own unit: nothing is shortened

    def defective(d: EmbeddingDataset) -> NDArray[np.float64]:
        return clipped_sketch(spec, records(d.x, d.y))

    assert worst(defective, data) > sensitivity(spec, 0) * TOLERANCE


def test_defect_sketch_on_the_models_scaling() -> None:
    """sqrt(d) x/|x| inside the sketch multiplies its sensitivity by sqrt(d)."""
    spec, data = worlds.spec(), worlds.clusters(9)
    classes = len(spec.space.classes)

    def defective(d: EmbeddingDataset) -> NDArray[np.float64]:
        sketch = clipped_sketch(spec, d)
        sketch[classes:] *= np.sqrt(spec.space.dim)
        return sketch

    assert worst(defective, data) > sensitivity(spec, 0) * TOLERANCE


def test_defect_code_trained_without_noise() -> None:
    """Trap 1: a private, un-noised code moves every OTHER record's clipped gradient.

    The code follows the site's own mean (as un-noised local training would); one far record
    moves it, and with it the gradients of all others.
    """
    spec = worlds.spec(privacy={"clip_norm": 0.1}, model={"code_dropout": 0.0})
    frame, data = frame_for(spec), worlds.clusters(24)
    x = data.x.copy()
    x[0] = -10 * x.mean(axis=0)
    data = EmbeddingDataset.from_arrays(x, data.y)

    def defective(d: EmbeddingDataset) -> NDArray[np.float64]:
        code = 5 * d.x.mean(axis=0)[: spec.plan.model.code_dim]
        codes = np.stack([code, frame.codes[1]])
        moved = Frame(**{**frame.__dict__, "codes": codes})
        neutral = np.zeros(len(d.unit_ids), dtype=bool)
        rows = _loop(spec, d, moved, neutral, lambda loss, batch: loss.sum())
        return clip_rows(rows, 0.1).sum(axis=0)

    assert worst(defective, data) > 0.1 * TOLERANCE
