"""Label shifts: a client's own bias of the shared classifier, from its noised gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.data import EmbeddingDataset
from core.federation.label_shift import LabelShift
from core.federation.plan import Noise
from core.models.classifier import Linear, features
from core.models.frame import Frame
from core.models.label_shift import LABEL_SHIFT, curvature, read_label_shift, shifted
from core.privacy.noise import seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from core.wire import tensors
from tests.core import worlds

QUIET = Noise(sketch_multiplier=0.01, train_multiplier=1.0)


def records(n: int, odds: tuple[float, float, float], seed: int) -> EmbeddingDataset:
    """Records of overlapping classes with these frequencies."""
    drawn = worlds.clusters(8 * n, seed=seed, spread=2.0)
    labels, draw = drawn.y, np.random.default_rng(seed)
    kept = np.flatnonzero(draw.random(len(labels)) < np.asarray(odds)[labels])[:n]
    return EmbeddingDataset.from_arrays(drawn.x[kept], labels[kept])


SKEWED = {"mostly-0": (1.0, 0.1, 0.4), "mostly-1": (0.1, 1.0, 0.4)}


@pytest.fixture(scope="module")
def run() -> Simulated:
    spec = worlds.spec(privacy={"rounds": 12, "sample_rate": 1.0}, noise=QUIET)
    sites = [SimulatedSite(name, records(400, odds, 3)) for name, odds in SKEWED.items()]
    return simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET)


def frame_of(run: Simulated, sizes: list[float]) -> Frame:
    return replace(
        run.generator.frame,
        client_ids=tuple(f"c{i}" for i in range(len(sizes))),
        clients=tuple(f"c{i}" for i in range(len(sizes))),
        sizes=np.array(sizes),
    )


# --- the estimate ---


def test_noise_of_a_deviation_is_the_one_that_is_booked(run: Simulated) -> None:
    """Monte Carlo: pure noise of known size, sites of unlike sizes, one of which answers less."""
    frame, draw = frame_of(run, [50.0, 200.0, 100.0]), np.random.default_rng(0)
    start = LabelShift(np.zeros((3, 3)), np.zeros(3), np.zeros(3, np.int64))
    found = []
    for _ in range(3_000):
        shift = start
        for number in range(4):
            places = (0, 1, 2) if number < 2 else (0, 2)
            sums = {place: 5.0 * draw.normal(size=3) for place in places}
            shift = shift.after(frame, sums, 5.0)
        found.append((shift.sums / shift.rounds[:, None]) ** 2)
    booked = shift.noise / shift.rounds**2
    assert shift.rounds.tolist() == [4, 2, 4]
    np.testing.assert_allclose(np.mean(found, axis=(0, 2)), booked, rtol=0.06)


def test_deviations_that_noise_explains_vanish_and_others_stay() -> None:
    noise, rounds = np.array([4.0, 4.0]), np.array([2, 2])
    draw = np.random.default_rng(1)
    weak = LabelShift(0.5 * draw.normal(size=(2, 3)), noise, rounds)
    assert not weak.shrunk().any()
    strong = LabelShift(np.array([[60.0, -60.0, 0.0], [-60.0, 60.0, 0.0]]), noise, rounds)
    np.testing.assert_allclose(strong.shrunk(), strong.sums / 2, rtol=0.01)
    uneven = LabelShift(strong.sums / 20, np.array([0.1, 4.0]), rounds).shrunk()
    assert np.abs(uneven[0]).max() > np.abs(uneven[1]).max() > 0.0


def test_before_any_round_and_without_a_classifier() -> None:
    start = LabelShift.start(worlds.spec(), 2)
    assert start is not None
    assert start.shrunk().tolist() == [[0.0] * 3] * 2
    for changed in (
        worlds.spec(model={"classifier": "none"}),
        worlds.spec(privacy={"classifier_clip_norm": 0.0}),
    ):
        assert LabelShift.start(changed, 2) is None


def test_curvature_is_the_second_derivative_of_the_loss_along_a_bias() -> None:
    draw, step = np.random.default_rng(2), 1e-4
    classifier = Linear(draw.normal(size=(3, 5)), draw.normal(size=3))
    seen = draw.normal(size=(40, 5))

    def loss(bias: np.ndarray) -> float:
        logits = seen @ classifier.weight.T + bias
        return float(np.mean(np.log(np.exp(logits).sum(axis=1))))  # the label's part is linear

    b = classifier.bias
    second = [(loss(b + step * e) - 2 * loss(b) + loss(b - step * e)) / step**2 for e in np.eye(3)]
    assert curvature(classifier, seen) == pytest.approx(np.mean(second), rel=1e-4)
    sure = Linear(1e6 * classifier.weight, classifier.bias)
    assert np.isfinite(shifted(sure, np.ones(3), curvature(sure, seen)).bias).all()


# --- in a run ---


def test_a_sites_own_labels_fit_its_frequencies(run: Simulated) -> None:
    generator = run.generator
    shared = generator.classifier()
    for name, odds in SKEWED.items():
        test = records(1_500, odds, 8)
        seen = features(generator.frame, test.directions)
        own = (generator.classifier({name: 1.0}).labels(seen) == test.y).mean()
        # The wrong sign would lose as much.
        assert own > (shared.labels(seen) == test.y).mean() + 0.015
    blended = generator.classifier({"mostly-0": 0.5, "mostly-1": 0.5})
    assert np.abs(blended.bias - shared.bias).max() < 0.2
    np.testing.assert_array_equal(blended.weight, shared.weight)


def test_rows_of_a_site_are_labelled_by_its_own_classifier(run: Simulated) -> None:
    asked = {"run": "r", "n": 2_000, "mixture": {"mostly-1": 1.0}}
    made = run.generator.sample(SynthesisRequest.model_validate(asked), 4)
    seen = features(run.generator.frame, np.asarray(made.x, np.float64) / np.sqrt(12))
    own = run.generator.classifier({"mostly-1": 1.0})
    assert (own.labels(seen) == made.y).mean() > 0.999
    assert (run.generator.classifier().labels(seen) == made.y).mean() < 0.99


def test_a_client_that_joined_later_has_no_shift(run: Simulated) -> None:
    content, _ = tensors.unpack(run.rounds[-1].weights)
    known = read_label_shift(content, 2, 3)
    assert known.any()
    longer = read_label_shift(content, 3, 3)
    np.testing.assert_array_equal(longer[:2], known)
    assert not longer[2].any()
    assert not read_label_shift({}, 2, 3).any()


@pytest.mark.parametrize("wrong", [np.full((2, 3), np.nan), np.zeros((3, 3)), np.zeros((2, 4))])
def test_a_wrong_shift_is_refused(run: Simulated, wrong: np.ndarray) -> None:
    last, spec = run.rounds[-1], run.generator.spec
    content, metadata = tensors.unpack(last.weights)
    changed = tensors.pack({**content, LABEL_SHIFT: wrong.astype(np.float32)}, metadata)  # type: ignore[dict-item]
    with pytest.raises(tensors.TensorFileError, match="label_shift"):
        Generator.load(last.frame, changed, spec)


def test_noise_in_the_sum_knows_no_clients() -> None:
    spec = worlds.spec(privacy={"rounds": 2, "sample_rate": 1.0}, noise=QUIET)
    sites = [SimulatedSite(name, records(100, odds, 3)) for name, odds in SKEWED.items()]
    made = simulate(
        spec, sites, noise=seeded(0), secret=worlds.SECRET, noise_mode="aggregated"
    ).generator
    assert not made.label_shift.any()


def test_a_validation_round_leaves_it_as_it_is() -> None:
    privacy = {"rounds": 3, "sample_rate": 1.0, "validation_share": 0.2}
    spec = worlds.spec(privacy=privacy, noise=QUIET.model_copy(update={"validate_multiplier": 1.0}))
    sites = [SimulatedSite(name, records(200, odds, 3)) for name, odds in SKEWED.items()]
    made = simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET)
    trained, validated = (tensors.unpack(files.weights)[0] for files in made.rounds[-2:])
    assert spec.kind(spec.last_round) == "validate"
    assert trained[LABEL_SHIFT].any()
    np.testing.assert_array_equal(validated[LABEL_SHIFT], trained[LABEL_SHIFT])
