"""The auxiliary classifier: the sketch's discriminant, the server's step, labels of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from core.evaluation.utility import tstr
from core.federation.aggregate import Aggregated
from core.federation.plan import Noise, RunSpec
from core.federation.server import Gradient, State, advance, noise_gain, starting_state
from core.models.architecture import architecture_of
from core.models.classifier import (
    BIAS,
    FEATURE_SCALE,
    WEIGHT,
    _untempered,
    discriminant,
    features,
)
from core.models.frame import Frame
from core.models.layout import shared_layout, train_layout
from core.privacy.noise import seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.synthesis.decoding import Decoding
from core.synthesis.proposals import Proposals
from core.synthesis.request import SynthesisRequest
from core.wire import tensors
from tests.core import worlds

QUIET = Noise(sketch_multiplier=0.01, train_multiplier=0.05)


def simulated(**privacy: object) -> Simulated:
    spec = worlds.spec(privacy={"rounds": 6, "sample_rate": 1.0} | privacy, noise=QUIET)
    sites = [SimulatedSite(name, worlds.clusters(300, seed=s)) for s, name in enumerate("ab")]
    return simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET)


@pytest.fixture(scope="module")
def run() -> Simulated:
    return simulated()


def neutral(spec: RunSpec) -> NDArray[np.float64]:
    return np.zeros(spec.plan.model.code_dim)


def asked(**changes: object) -> SynthesisRequest:
    return SynthesisRequest.model_validate({"run": "r", "n": 600} | changes)


# --- the discriminant ---


def test_the_discriminant_is_the_textbook_one_of_the_frames_gaussian_classes(
    run: Simulated,
) -> None:
    frame, dim = run.generator.frame, 12
    draw = np.random.default_rng(0)
    factors = draw.normal(size=(2, dim)) * 0.3 * np.sqrt(dim)
    frame = replace(frame, factors=factors, factor_directions=np.zeros((4, 2)))
    y = draw.choice(3, size=60_000, p=frame.class_probs / frame.class_probs.sum())
    x = frame.base[y] + frame.scale[0] * draw.normal(size=(len(y), dim))
    x = (x + draw.normal(size=(len(y), 2)) @ factors) / np.sqrt(dim) - frame.centre
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    ours = _untempered(frame)
    agree = (theirs.predict(x) == (x @ ours.weight.T + ours.bias).argmax(axis=1)).mean()
    assert agree > 0.995


def test_tempering_divides_all_logits_alike(run: Simulated) -> None:
    frame = run.generator.frame
    found, raw = discriminant(frame), _untempered(frame)
    ratio = found.bias / raw.bias
    np.testing.assert_allclose(ratio, ratio[0])
    np.testing.assert_allclose(found.weight * FEATURE_SCALE, ratio[0] * raw.weight)
    assert 0 < ratio[0] < 1


def test_a_frame_without_contrasts_still_gives_training_a_scale(run: Simulated) -> None:
    frame = run.generator.frame
    flat = replace(frame, base=np.repeat(frame.base[:1], 3, axis=0))
    found = discriminant(flat)
    assert np.isfinite(found.weight).all()
    assert found.norm == 2.0


# --- the server's step ---


def started(spec: RunSpec, frame: Frame) -> State:
    return starting_state(spec, frame)


def test_weights_begin_with_the_discriminant(run: Simulated) -> None:
    spec, frame = run.generator.spec, Frame.from_bytes(run.rounds[0].frame)
    parts = shared_layout(spec).split(_phi(run.rounds[0]))
    found = discriminant(frame)
    np.testing.assert_allclose(parts[WEIGHT], found.weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts[BIAS], found.bias, rtol=1e-4, atol=1e-6)


def _phi(files: Aggregated) -> NDArray[np.float64]:
    return np.asarray(tensors.unpack(files.weights)[0]["phi"], np.float64)


def test_the_published_average_is_the_mean_of_the_later_half(run: Simulated) -> None:
    spec = run.generator.spec
    iterates = [shared_layout(spec).split(_phi(files))[WEIGHT] for files in run.rounds[1:]]
    np.testing.assert_allclose(
        run.generator.weights[WEIGHT], np.mean(iterates[3:], axis=0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("rounds", [1, 2, 7, 20])
def test_noise_gain_is_what_noise_does_to_the_average(rounds: int, momentum: float) -> None:
    """Against the recursion itself, run on many draws of noise."""
    draw = np.random.default_rng(0)
    velocity = iterate = np.zeros(40_000)
    kept = []
    for _ in range(rounds):
        velocity = momentum * velocity + draw.normal(size=velocity.size)
        iterate = iterate - velocity
        kept.append(iterate)
    average = np.mean(kept[rounds // 2 :], axis=0)
    assert noise_gain(rounds, momentum) == pytest.approx(float(average.std()), rel=0.03)


def test_noise_alone_moves_the_classifier_as_far_as_the_plan_says() -> None:
    spec = worlds.spec(
        dim=40, privacy={"rounds": 12, "clip_norm": 0.0}, optimiser={"classifier_noise": 0.4}
    )
    sites = [SimulatedSite("a", worlds.clusters(300, dim=40))]
    frame = simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET).generator.frame
    begin = started(spec, frame)
    distances = []
    for trial in range(12):
        state, draw = begin, np.random.default_rng(trial)
        for step in range(1, 13):
            gradient = Gradient(draw.normal(0, 0.07, begin.phi.size), 0.07)
            state = advance(spec, frame, step, state, gradient)
        distances.append(np.linalg.norm(state.average - begin.average) ** 2)
    wanted = 0.4 * discriminant(frame).norm
    assert np.sqrt(np.mean(distances)) == pytest.approx(wanted, rel=0.1)


def test_a_part_that_is_clipped_to_zero_stays(run: Simulated) -> None:
    """Its coordinates carry nothing but noise."""
    frame = run.generator.frame
    for still, moving in (("clip_norm", WEIGHT), ("classifier_clip_norm", "prior.weight")):
        spec = worlds.spec(privacy={still: 0.0})
        begin = started(spec, frame)
        gradient = Gradient(np.ones(begin.phi.size), 1.0)
        after = shared_layout(spec).split(advance(spec, frame, 1, begin, gradient).phi - begin.phi)
        moved = {name for name, value in after.items() if value.any()}
        assert moving in moved
        classifier = {WEIGHT, BIAS}
        assert moved == (classifier if still == "clip_norm" else set(after) - classifier)


def test_training_improves_on_a_sketch_that_is_all_noise() -> None:
    """The discriminant of noise is a guess; the rounds see records."""
    loud = Noise(sketch_multiplier=40.0, train_multiplier=0.2)
    spec = worlds.spec(privacy={"rounds": 20, "sample_rate": 1.0}, noise=loud)
    site = SimulatedSite("a", worlds.clusters(400))
    found = simulate(spec, [site], noise=seeded(1), secret=worlds.SECRET).generator
    test = worlds.clusters(400, seed=5)
    seen = features(found.frame, test.directions)
    begin = discriminant(found.frame)
    before = (begin.labels(seen) == test.y).mean()
    after = (found.classifier().labels(seen) == test.y).mean()
    assert after > max(0.9, before)


# --- labels ---


def test_rows_are_what_the_classifier_calls_them(run: Simulated) -> None:
    samples = run.generator.sample(asked(), 3)
    assert samples.guided
    seen = features(run.generator.frame, np.asarray(samples.x, np.float64) / np.sqrt(12))
    called = run.generator.classifier().labels(seen)
    assert (called == samples.y).mean() > 0.999  # but for float32 of the rows
    plain = run.generator.sample(asked(guidance="none"), 3)
    assert not plain.guided
    np.testing.assert_array_equal(plain.y, samples.y)
    assert not np.array_equal(plain.x, samples.x)


def test_guided_rows_teach_what_the_classifier_knows(run: Simulated) -> None:
    samples = run.generator.sample(asked(n=3_000), 3)
    test = worlds.clusters(500, seed=77)
    seen = features(run.generator.frame, test.directions)
    classifier = run.generator.classifier()
    own = (classifier.labels(seen) == test.y).mean()
    assert tstr(samples.x, samples.y, test.x, test.y).accuracy > own - 0.02


def test_a_longer_guided_request_begins_with_the_shorter_one(run: Simulated) -> None:
    long, short = (run.generator.sample(asked(n=n), 1) for n in (5_000, 70))
    np.testing.assert_array_equal(short.y, long.y[:70])
    np.testing.assert_array_equal(short.x, long.x[:70])


def test_a_class_that_the_classifier_never_names_keeps_the_generators_rows(
    run: Simulated,
) -> None:
    weights = dict(run.generator.weights)
    weights[BIAS] = np.array([0.0, -1e6, 0.0])
    blind = replace(run.generator, weights=weights)
    counts = {"class-0": 20, "class-1": 50}
    samples = blind.sample(asked(n=None, class_counts=counts), 1)
    assert samples.labels().count("class-1") == 50
    spec = run.generator.spec
    code = neutral(spec)
    decoding = Decoding(spec, blind.frame, weights, code, code)
    rows = Proposals(decoding, 1).rows(samples.y)
    own = samples.y == 1
    np.testing.assert_array_equal(samples.x[own], rows[own])
    assert not (samples.x[~own] == rows[~own]).all(axis=1).any()


@pytest.mark.parametrize(
    ("privacy", "guidance", "model"),
    [
        ({"classifier_clip_norm": 0.0}, {}, {}),
        ({}, {"labels": "none"}, {}),
        ({}, {}, {"classifier": "none"}),
    ],
)
def test_models_without_a_trained_classifier_are_not_guided(
    privacy: dict[str, float], guidance: dict[str, str], model: dict[str, str]
) -> None:
    spec = worlds.spec(privacy={"rounds": 1} | privacy, model=model, noise=QUIET)
    changed = spec.plan.model_validate(spec.plan.model_dump() | {"guidance": guidance})
    spec = spec.model_copy(update={"plan": changed})
    sites = [SimulatedSite("a", worlds.clusters(100))]
    found = simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET)
    assert not found.generator.sample(asked(), 0).guided


def test_the_classifier_has_blocks_of_its_own() -> None:
    spec = worlds.spec()
    network = architecture_of(spec)
    assert network.groups[-1] == "classifier"
    assert dict(train_layout(spec).blocks)[WEIGHT] == (3, 12)
    without = worlds.spec(model={"classifier": "none"})
    assert "classifier" not in architecture_of(without).groups
