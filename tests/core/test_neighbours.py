"""Coupled neighbours: the query before noise on D and D' moves by at most its sensitivity.

Both data sets see the same released transcript and the same secret stream; D' lacks one unit.
Each defective version below is one that public implementations have, or that ghost clipping
invites; the same fuzzer must catch it. Training queries run through the default engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models.architecture import Architecture, Form, architecture_of, group_of
from core.models.build import build
from core.models.frame import Frame
from core.models.generator import initial_weights
from core.models.hypernetwork import HyperCVAE
from core.models.layout import sketch_layout, train_layout
from core.models.losses import Records
from core.privacy import ghost
from core.privacy.clipping import ClipRule
from core.privacy.coins import CoinStream
from core.privacy.mechanism import clip_rows, clip_rule, sensitivity
from core.training.compute import Compute, Precision
from core.training.gradients import Batch, clipped_sum
from core.training.sketch import clipped_sketch
from tests.core import worlds
from tests.core.posted import clip_norms_moved

TOLERANCE = 1 + 1e-6
Vector = NDArray[np.float64]
Query = Callable[[EmbeddingDataset], Vector]
FORMS: tuple[Form, ...] = ("film", "lowrank", "full")
CLIPPING: dict[str, dict[str, Any]] = {
    "fixed": {},
    "by block": {"block_clip_norms": {"trunk": 0.1, "heads": 0.2, "encoder": 0.15}},
    "automatic": {"clipping": "automatic", "automatic_gamma": 0.05},
    "automatic, by block": {
        "clipping": "automatic", "automatic_gamma": 1e-3, "block_clip_norms": {"prior": 0.05},
    },
}  # fmt: skip


# The largest site allowed decides how many records are worked on at once: 32, not 1024.
SMALL = {"n_max": 30}


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


def mixed_units(seed: int) -> EmbeddingDataset:
    """Awkward records, some with a wrong label, in nine units of 1, 1, 1, 1, 2, 3, 3, 5 and 7."""
    data, draw = awkward(seed), np.random.default_rng(seed)
    y = data.y.copy()
    y[9:15] = draw.integers(0, 2, 6)
    units = draw.permutation(np.repeat(np.arange(9), [1, 1, 1, 1, 2, 3, 3, 5, 7]))
    return worlds.with_units(EmbeddingDataset.from_arrays(data.x, y), units)


def movement(query: Query, data: EmbeddingDataset, unit: bytes) -> float:
    return float(np.linalg.norm(query(data) - query(worlds.without_unit(data, unit))))


def worst(query: Query, data: EmbeddingDataset) -> float:
    return max(movement(query, data, unit) for unit in data.unit_ids)


def assert_bounded(spec: RunSpec, query: Query, data: EmbeddingDataset) -> float:
    """Each unit moves the sum by at most S, and each part by at most its own clip norm: S may hide
    a generator's part that is too long beside the classifier's. Returns how far the worst moves it.
    """
    whole, furthest = query(data), 0.0
    for unit in data.unit_ids:
        moved = whole - query(worlds.without_unit(data, unit))
        furthest = max(furthest, float(np.linalg.norm(moved)))
        assert clip_norms_moved(spec, moved) <= TOLERANCE
    assert furthest <= sensitivity(spec, 1) * TOLERANCE
    return furthest


def blocks_of(spec: RunSpec) -> dict[str, tuple[int, ...]]:
    return dict(train_layout(spec).blocks)


def coins_of(spec: RunSpec, number: int) -> CoinStream:
    return CoinStream(worlds.SECRET, spec.run_id, number, 1)


@dataclass(frozen=True, eq=False)
class Transcript:
    """What D and D' share: the frame and the iterates [P] of rounds 1, 2, ... as released."""

    spec: RunSpec
    frame: Frame
    weights: Sequence[Vector]

    @classmethod
    def of(cls, spec: RunSpec, data: EmbeddingDataset, rounds: int) -> Transcript:
        """The iterates are moved by what D released (post-processing)."""
        weights = [initial_weights(spec)]
        transcript = cls(spec, frame_for(spec), weights)
        draw = np.random.default_rng(0)
        for number in range(1, rounds):
            noise = 0.3 * draw.normal(size=weights[0].size)
            weights.append(weights[-1] - 0.1 * (transcript.query(number)(data) + noise))
        return transcript

    @property
    def bound(self) -> float:
        return sensitivity(self.spec, 1) * TOLERANCE

    def query(self, number: int = 0, **compute: Any) -> Query:
        """The real query of a round; the last one unless given."""
        number = number or len(self.weights)
        weights, coins = self.weights[number - 1], coins_of(self.spec, number)

        def run(data: EmbeddingDataset) -> Vector:
            return clipped_sum(
                self.spec, data, self.frame, weights, "a", coins, compute=Compute(**compute)
            )

        return run

    def batch(self, data: EmbeddingDataset, number: int = 0) -> Batch:
        """The Poisson sample of that round."""
        coins = coins_of(self.spec, number or len(self.weights))
        return Batch.draw(self.spec, data, self.frame, "a", coins)


# --- ours ---


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("rounds", [1, 5, 50])
@pytest.mark.parametrize("form", FORMS)
def test_training_query_stays_within_its_sensitivity(
    form: Form, rounds: int, clipping: str
) -> None:
    privacy = {"rounds": 50, "sample_rate": 0.9, "clip_norm": 0.3, **SMALL, **CLIPPING[clipping]}
    spec = worlds.spec(privacy=privacy, model={"form": form})
    data = mixed_units(rounds)
    transcript = Transcript.of(spec, data, rounds)
    assert assert_bounded(spec, transcript.query(), data) > 0
    if rounds == 1:  # and with units larger than what is worked on at once
        assert assert_bounded(spec, transcript.query(micro_batch=4), data) > 0


@pytest.mark.parametrize("clipping", ["fixed", "by block", "automatic"])
@pytest.mark.parametrize("form", FORMS)
def test_training_query_under_a_standard_prior(form: Form, clipping: str) -> None:
    privacy = {"sample_rate": 0.9, "clip_norm": 0.3, **SMALL, **CLIPPING[clipping]}
    spec = worlds.spec(privacy=privacy, model={"form": form, "prior": "standard"})
    data = mixed_units(5)
    transcript = Transcript.of(spec, data, 5)
    assert assert_bounded(spec, transcript.query(), data) > 0


@given(
    seed=st.integers(0, 1000),
    n=st.integers(2, 30),
    rate=st.floats(0.05, 1.0),
    groups=st.integers(1, 6),
    form=st.sampled_from(FORMS),
    clipping=st.sampled_from(sorted(CLIPPING)),
    activation=st.sampled_from(["tanh", "relu", "gelu", "silu"]),
    scale=st.sampled_from([0.1, 1.0, 30.0, 1e6, 1e18, 1e37]),
    micro_batch=st.none() | st.integers(1, 9),
    precision=st.sampled_from(["float32", "bfloat16"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_training_query_under_any_weights(
    seed: int, n: int, rate: float, groups: int, form: Form, clipping: str, activation: str,
    scale: float, micro_batch: int | None, precision: str,
) -> None:  # fmt: skip
    """Also under weights that noise, or a dishonest coordinator, blew up."""
    spec = worlds.spec(
        privacy={"sample_rate": rate, **CLIPPING[clipping]},
        model={"form": form, "activation": activation, "hidden_layers": 2},
    )
    draw = np.random.default_rng(seed)
    data = worlds.with_units(worlds.clusters(n, seed=seed), draw.integers(0, groups, n))
    weights = scale * draw.normal(size=train_layout(spec).size)
    transcript = Transcript(spec, frame_for(spec), [weights])
    query = transcript.query(micro_batch=micro_batch, precision=precision)
    assert_bounded(spec, query, data)


@pytest.mark.parametrize(
    ("value", "precision"),
    [(1e37, "float32"), (1e37, "bfloat16"), (3.4e38 / 50, "float32"), (3.4e38 / 50, "bfloat16")],
)
@pytest.mark.parametrize("head", ["film_0", "left_0", "right_0", "weight_0", "weight_1", "bias_1"])
def test_one_codes_infinite_decoder_does_not_touch_records_of_another(
    head: str, value: float, precision: Precision
) -> None:
    """Finite weights may generate infinite ones for the client's code and ordinary ones for the
    neutral code. Whether a neutral record counts must not depend on who else is in its tile.
    3.4e38 is finite in float32 and infinite in bfloat16.
    """
    form = next(f for f in FORMS if f"heads.{head}.weight" in blocks_of(defect_spec(f)))
    spec = defect_spec(form, code_dropout=0.9, trunk_width=50, classifier="linear")
    data = worlds.clusters(24)
    layout, draw, frame = train_layout(spec), np.random.default_rng(0), frame_for(spec)
    parts = {name: 0.1 * draw.normal(size=shape) for name, shape in layout.blocks}
    # The neutral code makes u = 0, the client's u = (1, ..., 1): 50 of these are too many.
    parts["trunk.0.weight"] = np.tile(100.0 * np.sign(frame.code("a")), (50, 1))
    parts["trunk.0.bias"] = np.zeros(50)
    parts[f"heads.{head}.weight"][0] = value
    parts[f"heads.{head}.bias"][0] = 0.0
    transcript = Transcript(spec, frame, [layout.join(parts)])
    neutral = transcript.batch(data).neutral
    assert 0 < (~neutral).sum() < 6
    assert_bounded(spec, transcript.query(precision=precision), data)


def test_training_query_of_nobody_everybody_and_one_class() -> None:
    for form in FORMS:
        spec = worlds.spec(model={"form": form}, privacy={"sample_rate": 1.0})
        data = worlds.clusters(6)
        query = Transcript.of(spec, data, 2).query()
        nobody = EmbeddingDataset.from_arrays(data.x[:0], data.y[:0])
        only = EmbeddingDataset.from_arrays(data.x, np.zeros(6, dtype=np.int64))
        alone = EmbeddingDataset.from_arrays(data.x[:1], data.y[:1])
        assert not query(nobody).any()
        assert not clipped_sketch(spec, nobody).any()
        assert assert_bounded(spec, query, only) > 0
        assert assert_bounded(spec, query, alone) > 0  # its neighbour is nobody


@given(st.integers(0, 1000), st.integers(9, 40), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_sketch_query_stays_within_its_sensitivity(seed: int, n: int, groups: int) -> None:
    spec = worlds.spec()
    bound = sensitivity(spec, 0) * TOLERANCE
    data = awkward(seed, n)
    assert worst(lambda d: clipped_sketch(spec, d), data) <= bound
    several = worlds.with_units(data, np.random.default_rng(seed).integers(0, groups, n))
    assert worst(lambda d: clipped_sketch(spec, d), several) <= bound


def test_a_nan_record_contributes_nothing_and_harms_nobody() -> None:
    spec = worlds.spec(privacy={"sample_rate": 1.0})
    data = worlds.clusters(10)
    x = data.x.copy()
    x[3] = np.nan
    poisoned = EmbeddingDataset.from_arrays(x, data.y, data.unit)
    query = Transcript.of(spec, data, 1).query()
    rest = worlds.without_unit(data, data.unit[3])
    np.testing.assert_allclose(query(poisoned), query(rest), atol=1e-9)
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
        inputs = (*batch.inputs(np.array([place])), batch.codes[batch.code_of[[place]]])
        seen = batch.features(np.array([place]))
        given = [torch.from_numpy(part) for part in (*inputs, seen) if part is not None]
        module.zero_grad()
        reduce(module(*given)).backward()
        rows.append(torch.cat([p.grad.flatten() for p in module.parameters()]).numpy())
    return np.array(rows).reshape(-1, train_layout(batch.spec).size)


def by_unit(batch: Batch, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[U, P] sums of [n, P] over the records of each unit."""
    units, place = np.unique(batch.unit_of, return_inverse=True)
    total = np.zeros((len(units), rows.shape[1]))
    np.add.at(total, place, rows)
    return total


@pytest.mark.parametrize("classifier", ["none", "linear"])
@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
@pytest.mark.parametrize("form", FORMS)
def test_clipped_sum_is_that_of_a_loop_over_records(
    form: Form, clip_norm: float, classifier: str
) -> None:
    spec = worlds.spec(
        privacy={
            "clip_norm": clip_norm, "classifier_clip_norm": 3.0 * clip_norm, "sample_rate": 0.6,
        },
        model={"form": form, "classifier": classifier},
    )  # fmt: skip
    data = worlds.with_units(
        worlds.clusters(40, seed=3), np.random.default_rng(3).integers(0, 15, 40)
    )
    weights = initial_weights(spec)
    weights += 0.1 * np.random.default_rng(1).normal(size=weights.size)
    transcript = Transcript(spec, frame_for(spec), [weights])
    batch = transcript.batch(data)
    gradients = by_unit(batch, gradient_rows(batch, weights))
    ours, mine = transcript.query()(data), columns(spec) == "classifier"
    parts = [(~mine, clip_norm)] + ([(mine, 3.0 * clip_norm)] if classifier == "linear" else [])
    for part, longest in parts:
        norms = np.linalg.norm(gradients[:, part], axis=1, keepdims=True)
        reference = (gradients[:, part] * np.minimum(1.0, longest / norms)).sum(axis=0)
        assert np.linalg.norm(ours[part] - reference) <= 1e-5 * np.linalg.norm(reference)


def test_chunks_do_not_change_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = worlds.spec(privacy={"sample_rate": 1.0})
    # Units of four records and one of twenty, which is more than a chunk.
    data = worlds.with_units(worlds.clusters(60), np.maximum(np.arange(60), 20) // 4)
    query = Transcript.of(spec, data, 1).query(engine="opacus")
    whole = query(data)
    monkeypatch.setattr("core.training.reference._CHUNK_RECORDS", 7)
    np.testing.assert_allclose(query(data), whole, atol=1e-5)
    monkeypatch.setattr("core.training.reference._CHUNK_NUMBERS", 1)
    np.testing.assert_allclose(query(data), whole, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_records_gradient_does_not_depend_on_its_neighbours(form: Form) -> None:
    spec = worlds.spec(privacy={"sample_rate": 1.0, "clip_norm": 1e6}, model={"form": form})
    data = worlds.clusters(12)
    query = Transcript.of(spec, data, 1).query()
    one = EmbeddingDataset.from_arrays(data.x[:1], data.y[:1], data.unit[:1])
    rest = worlds.without_unit(data, data.unit[0])
    np.testing.assert_allclose(query(data), query(rest) + query(one), rtol=1e-9, atol=1e-9)


# --- known wrong versions, each caught ---


def ghost_of(
    batch: Batch,
    weights: Vector,
    rule: ClipRule,
    *,
    network: Architecture | None = None,
    unit_of: NDArray[np.int64] | None = None,
) -> Vector:
    """[P] by the real engine, with one thing in its surroundings replaced."""
    parts = train_layout(batch.spec).split(weights)

    def load(places: NDArray[np.int64]) -> Records:
        residual, labels, draws = map(torch.from_numpy, batch.inputs(places))
        seen = batch.features(places)
        features = None if seen is None else torch.from_numpy(seen).float()
        return Records(residual.float(), labels, draws.float(), features)

    model = ghost.HyperModel(
        network or architecture_of(batch.spec),
        {name: torch.tensor(part, dtype=torch.float32) for name, part in parts.items()},
        torch.tensor(batch.codes, dtype=torch.float32),
    )
    units = batch.unit_of if unit_of is None else unit_of
    return ghost.clipped_sum(model, units, batch.code_of, load, rule, tile=32).vector().numpy()


def columns(spec: RunSpec) -> NDArray[np.str_]:
    """[P] the group of blocks of each coordinate."""
    blocks = train_layout(spec).blocks
    return np.concatenate([np.full(int(np.prod(s)), group_of(name)) for name, s in blocks])


def defect_spec(form: Form, **model: Any) -> RunSpec:
    """Without the classifier unless asked for: most defects are of the generator alone."""
    privacy = {"clip_norm": 0.1, "sample_rate": 1.0, "rounds": 50, **SMALL}
    privacy["classifier_clip_norm"] = 0.1
    return worlds.spec(privacy=privacy, model={"form": form, "classifier": "none", **model})


def one_far_record(n: int = 24) -> EmbeddingDataset:
    """The first record lies opposite of all others."""
    data = worlds.clusters(n)
    x = data.x.copy()
    x[0] = -10 * x.mean(axis=0)
    return EmbeddingDataset.from_arrays(x, data.y)


@dataclass(frozen=True, eq=False)
class PrivateState:
    """Trap 1: code or encoder of a client are trained by plain gradients, round after round, and
    never leave it; only clipped gradients of the rest do. Every other record's gradient then
    depends on the protected one.
    """

    transcript: Transcript
    local: str
    rate: float

    def step(self, batch: Batch, weights: Vector) -> tuple[Batch, Vector]:
        """One local step: the client's code, or the encoder's block of the weights."""
        spec = batch.spec
        module = HyperCVAE(architecture_of(spec)).double()
        parts = train_layout(spec).split(weights)
        module.load({name: torch.from_numpy(np.array(part)) for name, part in parts.items()})
        inputs = [torch.from_numpy(part) for part in batch.inputs(np.arange(len(batch.rows)))]
        code = torch.from_numpy(batch.own).requires_grad_(True)
        module(*inputs, code.expand(len(batch.rows), -1)).mean().backward()
        if self.local == "code":
            return replace(batch, own=batch.own - self.rate * code.grad.numpy()), weights
        slopes = torch.cat([p.grad.flatten() for p in module.parameters()]).numpy()
        mine = columns(spec) == "encoder"
        return batch, weights - np.where(mine, self.rate * slopes, 0.0)

    def query(self, data: EmbeddingDataset) -> Vector:
        """What the client posts in the last round: nothing of what it keeps."""
        transcript, own = self.transcript, self.transcript.frame.code("a")
        mine = columns(transcript.spec) == "encoder"
        encoder = transcript.weights[0]
        for number, released in enumerate(transcript.weights, 1):
            batch = replace(transcript.batch(data, number), own=own)
            weights = np.where(mine, encoder, released) if self.local == "encoder" else released
            batch, weights = self.step(batch, weights)
            own, encoder = batch.own, weights
        rule = clip_rule(transcript.spec.plan.privacy)
        if self.local == "encoder":
            rule = replace(rule, blocks={"encoder": 0.0})
        return ghost_of(batch, weights, rule)


@pytest.mark.parametrize("rounds", [1, 5, 50])
@pytest.mark.parametrize("local", ["code", "encoder"])
@pytest.mark.parametrize("form", FORMS)
def test_defect_private_state_trained_without_noise(form: Form, local: str, rounds: int) -> None:
    spec, data = defect_spec(form, code_dropout=0.0), one_far_record()
    released = Transcript.of(spec, data, rounds)

    def moved(rate: float, seed: int) -> float:
        # Weights of a run that has learnt something: under initial ones no code matters.
        learnt = 0.5 * np.random.default_rng(seed).normal(size=released.weights[0].size)
        transcript = replace(released, weights=[w + learnt for w in released.weights])
        return movement(PrivateState(transcript, local, rate).query, data, data.unit[0])

    assert 0 < moved(0.0, 1) <= released.bound
    tried = ((rate, seed) for seed in range(1, 9) for rate in (0.03, 0.1, 0.3))
    assert any(moved(rate, seed) > 2 * released.bound for rate, seed in tried)


@pytest.mark.filterwarnings("ignore:.*non-full backward hook.*")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing.*")
@pytest.mark.parametrize("form", FORMS)
def test_defect_whole_batch_clipped_as_one_example(form: Form) -> None:
    """Trap 2: one hypernetwork forward a batch, so that opacus' hooks see one example in it."""
    spec = defect_spec(form, code_dropout=0.0)
    network, frame = architecture_of(spec), frame_for(spec)
    weights = initial_weights(spec)
    weights += 0.5 * np.random.default_rng(1).normal(size=weights.size)
    transcript = Transcript(spec, frame, [weights])
    parts = train_layout(spec).split(weights)

    def per_example(d: EmbeddingDataset) -> list[torch.Tensor]:
        """The per-sample gradients of trunk and heads, as opacus finds them."""
        batch = transcript.batch(d)
        module = HyperCVAE(network)
        module.load({name: torch.from_numpy(np.array(part)) for name, part in parts.items()})
        hooked = GradSampleModule(module, batch_first=True, loss_reduction="sum")
        residual, labels, draws = batch.inputs(np.arange(len(batch.rows)))
        inputs = [torch.tensor(part, dtype=torch.float32) for part in (residual, draws, batch.own)]
        losses = hooked(inputs[0], torch.from_numpy(labels), inputs[1], inputs[2][None])
        losses.sum().backward()
        shared = [*module.trunk.parameters(), *module.heads.parameters()]
        return [parameter.grad_sample for parameter in shared]

    def defective(d: EmbeddingDataset) -> Vector:
        samples = per_example(d)
        rows = torch.cat([part.reshape(len(part), -1) for part in samples], dim=1)
        return clip_rows(rows.double().numpy(), 0.1).sum(axis=0)

    pair = one_far_record(2)
    assert {len(part) for part in per_example(worlds.clusters(20))} == {1}
    assert worst(transcript.query(), pair) <= transcript.bound
    assert worst(defective, pair) > transcript.bound


@pytest.mark.parametrize("rounds", [1, 5, 50])
@pytest.mark.parametrize("form", FORMS)
def test_defect_first_k_of_the_batch_are_neutral(form: Form, rounds: int) -> None:
    """A fixed share by batch position: removing one unit re-assigns another."""
    spec, data = defect_spec(form), worlds.clusters(20)
    transcript = Transcript.of(spec, data, rounds)

    def defective(d: EmbeddingDataset) -> Vector:
        neutral = np.arange(len(d.unit_ids)) < 0.5 * len(d.unit_ids)
        batch = replace(transcript.batch(d), neutral=neutral)
        return ghost_of(batch, transcript.weights[-1], clip_rule(spec.plan.privacy))

    assert worst(defective, data) > transcript.bound


@pytest.mark.parametrize("form", FORMS)
def test_defect_coins_by_batch_position(form: Form) -> None:
    """Latent draws or inclusion from one running stream: everyone behind the removed one moves."""
    spec, data = defect_spec(form), worlds.clusters(20)
    transcript = Transcript.of(spec, data, 1)

    def defective(d: EmbeddingDataset) -> Vector:
        neutral = np.random.default_rng(0).random(len(d.unit_ids)) < 0.5
        batch = replace(transcript.batch(d), neutral=neutral)
        return ghost_of(batch, transcript.weights[-1], clip_rule(spec.plan.privacy))

    assert worst(defective, data) > transcript.bound


@pytest.mark.parametrize("rounds", [1, 5, 50])
@pytest.mark.parametrize("form", FORMS)
def test_defect_divergence_summed_over_the_batch(form: Form, rounds: int) -> None:
    """Trap 6: mean(reconstruction) + sum(KL). Per-sample gradients of a mean are multiplied by the
    batch, so KL weighs as much as there are records.
    """
    spec, data = defect_spec(form), worlds.clusters(20)
    transcript = Transcript.of(spec, data, rounds)
    network, beta = architecture_of(spec), spec.plan.model.beta

    def defective(d: EmbeddingDataset) -> Vector:
        batch = transcript.batch(d)
        weighted = replace(network, beta=beta * len(batch.rows))
        rule = clip_rule(spec.plan.privacy)
        return ghost_of(batch, transcript.weights[-1], rule, network=weighted)

    assert worst(defective, data) > transcript.bound


def test_defect_loss_divided_by_the_batch() -> None:
    """A mean-reduced loss makes every record's gradient depend on how many there are."""
    spec, data = worlds.spec(privacy={"sample_rate": 1.0, "clip_norm": 1e6}), worlds.clusters(12)
    transcript = Transcript.of(spec, data, 1)

    def rows(d: EmbeddingDataset, *, divided: bool) -> Vector:
        batch = transcript.batch(d)
        return gradient_rows(
            batch,
            transcript.weights[-1],
            lambda loss: loss.sum() / (len(batch.rows) if divided else 1),
        )

    fewer = worlds.without_unit(data, data.unit[0])
    assert not np.allclose(rows(data, divided=True)[1:], rows(fewer, divided=True))
    np.testing.assert_array_equal(rows(data, divided=False)[1:], rows(fewer, divided=False))


def test_defect_naive_factor_lets_one_record_end_the_round() -> None:
    """Trap 8: min(1, C / |g|) of a NaN record is NaN, and so is everybody's sum."""
    spec, data = defect_spec("film"), mixed_units(0)
    transcript = Transcript.of(spec, data, 1)

    def defective(d: EmbeddingDataset) -> Vector:
        # NaN where nobody looked at the records before they entered the loss.
        batch = transcript.batch(d)
        rows = gradient_rows(batch, transcript.weights[-1])
        bad = [not np.isfinite(d.x[d.unit_of == unit]).all() for unit in np.unique(batch.unit_of)]
        gradients = by_unit(batch, rows)
        gradients[bad] = np.nan
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        return (gradients * np.minimum(1.0, 0.1 / norms)).sum(axis=0)

    assert worst(transcript.query(), data) <= transcript.bound
    assert not any(movement(defective, data, unit) <= transcript.bound for unit in data.unit_ids)


@pytest.mark.parametrize("classifier", ["none", "linear"])
@pytest.mark.parametrize("rounds", [1, 5, 50])
@pytest.mark.parametrize("form", FORMS)
def test_defect_clipping_records_instead_of_units(form: Form, rounds: int, classifier: str) -> None:
    """A patient of nine records would count nine times."""
    spec = defect_spec(form, classifier=classifier)
    data = worlds.with_units(worlds.clusters(27), np.arange(27) // 9)
    transcript = Transcript.of(spec, data, rounds)

    def defective(d: EmbeddingDataset) -> Vector:
        batch = transcript.batch(d)
        rule, records = clip_rule(spec.plan.privacy), np.arange(len(batch.rows))
        return ghost_of(batch, transcript.weights[-1], rule, unit_of=records)

    assert worst(defective, data) > transcript.bound


@pytest.mark.parametrize("rounds", [1, 5, 50])
@pytest.mark.parametrize("form", FORMS)
def test_defect_norm_without_the_trunk(form: Form, rounds: int) -> None:
    """Ghost norms of the heads and shared layers only: c^T K c, the trunk's part, is forgotten."""
    spec, data = defect_spec(form), worlds.clusters(8)
    transcript = Transcript.of(spec, data, rounds)
    # Under initial weights the heads are zero and nothing reaches the trunk yet.
    weights = transcript.weights[-1]
    weights = weights + 0.5 * np.random.default_rng(1).normal(size=weights.size)
    seen = columns(spec) != "trunk"

    def defective(d: EmbeddingDataset) -> Vector:
        batch = transcript.batch(d)
        gradients = by_unit(batch, gradient_rows(batch, weights))
        norms = np.linalg.norm(gradients[:, seen], axis=1, keepdims=True)
        return (gradients * np.minimum(1.0, 0.1 / norms)).sum(axis=0)

    assert worst(replace(transcript, weights=[weights]).query(), data) <= transcript.bound
    assert worst(defective, data) > transcript.bound


@pytest.mark.parametrize("rounds", [1, 5, 50])
def test_defect_classifier_left_out_of_the_sensitivity(rounds: int) -> None:
    """Its gradient is clipped, but noise is scaled to the generator's clip norm alone."""
    spec, data = defect_spec("film", classifier="linear"), one_far_record()
    transcript = Transcript.of(spec, data, rounds)
    furthest = assert_bounded(spec, transcript.query(), data)
    assert furthest > spec.plan.privacy.clip_norm * TOLERANCE


def test_defect_generators_part_too_long_beside_a_short_classifiers() -> None:
    """S would not tell: the joint length is within it. The parts do."""
    spec, data = defect_spec("film", classifier="linear"), one_far_record()
    transcript = Transcript.of(spec, data, 5)
    wrong = replace(clip_rule(spec.plan.privacy), clip_norm=0.12, blocks={"classifier": 0.05})

    def defective(d: EmbeddingDataset) -> Vector:
        return ghost_of(transcript.batch(d), transcript.weights[-1], wrong)

    assert 0 < worst(defective, data) <= transcript.bound
    with pytest.raises(AssertionError):
        assert_bounded(spec, defective, data)
    assert assert_bounded(spec, transcript.query(), data) > 0


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
