"""What is read from the report round: right where noise is small, honest where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.privacy import membership_attack
from core.federation.plan import Noise
from core.models.features import fourier_features, report_frequencies
from core.privacy.noise import seeded
from core.report import blocks
from core.report.blocks import FEATURE_PAIRS, RATIOS
from core.report.estimates import SiteEstimator
from core.report.neighbours import Synthetic
from core.report.site import Estimate, SiteStatistics
from core.report.statistics import Statistics, read
from core.simulation import Simulated, SimulatedSite, simulate
from core.training.holdout import held_out
from core.training.report import Comparison, report_sum
from core.wire import tensors
from tests.core import worlds
from tests.core.report_world import inputs_of, query, spec_of

Vector = NDArray[np.float64]
TINY = Noise(sketch_multiplier=0.05, train_multiplier=0.5, report_multiplier=1e-4)
SPEC = spec_of(noise=TINY)
LAST = SPEC.last_round
DATA = worlds.clusters(1_500, spread=1.6)  # classes overlap: some answers are wrong
SITES = [SimulatedSite("a", DATA), SimulatedSite("b", worlds.clusters(900, seed=1, shift=0.2))]


@pytest.fixture(scope="module")
def run() -> Simulated:
    return simulate(SPEC, SITES, noise=seeded(0), secret=worlds.SECRET)


@pytest.fixture(scope="module")
def found(run: Simulated) -> Statistics:
    statistics = read(SPEC, run.rounds[-1].weights)
    assert statistics is not None
    return statistics


@pytest.fixture(scope="module")
def comparison(run: Simulated) -> Comparison:
    return Comparison.read(SPEC, inputs_of(run, LAST))


def both_parts(data: EmbeddingDataset, client: str = "a") -> tuple[Vector, Vector, Vector, Vector]:
    """Directions and labels, held out and not."""
    out = held_out(SPEC, client, data)
    x, y = data.directions, data.y
    return x[out], y[out].astype(float), x[~out], y[~out].astype(float)


# --- equal to exact metrics where noise is tiny ---


def test_figures_are_those_of_a_slow_count(
    run: Simulated, found: Statistics, comparison: Comparison
) -> None:
    outside, labels, inside, _ = both_parts(DATA)
    site = found.sites[0]
    assert site.client == "a"
    assert site.held_out.value == pytest.approx(len(outside), abs=0.01)
    assert site.members.value == pytest.approx(len(inside), abs=0.01)
    neutral = comparison.reference.classifiers[0]
    said = np.array([int((neutral[:, :-1] @ x + neutral[:, -1]).argmax()) for x in outside])
    assert 0.5 < (said == labels).mean() < 0.995
    assert site.accuracy.value == pytest.approx((said == labels).mean(), abs=1e-4)
    assert site.confusion is not None
    for truth in range(3):
        assert site.class_shares.values[truth] == pytest.approx((labels == truth).mean(), abs=1e-4)
        of_class = said[labels == truth]
        assert site.recall[truth].value == pytest.approx((of_class == truth).mean(), abs=1e-3)
        for other in range(3):
            share = ((labels == truth) & (said == other)).mean()
            assert site.confusion.values[truth, other] == pytest.approx(share, abs=1e-4)
    assert set(site.domains) == {"a", "b"}
    for place, name in enumerate(("a", "b"), start=1):
        own = comparison.reference.classifiers[place]
        right = (outside @ own[:, :-1].T + own[:, -1]).argmax(axis=1) == labels
        assert site.domains[name].value == pytest.approx(right.mean(), abs=1e-4)
    made = comparison.synthetic.directions
    apart = np.sqrt(((outside[:, None] - made[None, ::]) ** 2).sum(axis=2))
    radii = np.sort(np.sqrt(np.maximum(2.0 - 2.0 * made @ made.T, 0.0)), axis=1)[:, 5]
    assert site.inside.value == pytest.approx((apart <= radii).any(axis=1).mean(), abs=2e-3)
    two = np.sort(apart, axis=1)[:, :2]
    ratios = np.median(two[:, 0] / two[:, 1])
    assert site.median_ratio.value == pytest.approx(ratios, abs=0.01)
    for shares, values, thresholds in (
        (site.nearest, two[:, 0], found.distance_thresholds),
        (site.ratio, two[:, 0] / two[:, 1], np.array(RATIOS)),
    ):
        counted = np.histogram(values, [-np.inf, *thresholds, np.inf])[0] / len(values)
        np.testing.assert_allclose(shares.values, counted, atol=1e-3)
    assert site.closer.value == pytest.approx(
        (two[:, 0] < found.distance_thresholds[1]).mean(), abs=1e-3
    )
    along = outside @ comparison.reference.axes.T
    cells = np.histogram2d(along[:, 0], along[:, 1], bins=list(comparison.reference.edges))[0]
    np.testing.assert_allclose(site.map.values, cells / len(outside), atol=2e-3)
    assert site.coverage.value == pytest.approx(found.synthetic_map[cells > 0].sum(), abs=1e-3)
    exact = membership_attack(inside, outside, made)
    assert site.attack_auc.value == pytest.approx(exact.auc, abs=0.02)  # by bins: ties
    assert site.attack_null_sd == pytest.approx(exact.null_sd, rel=0.01)


def test_mmd_is_that_of_the_same_features(found: Statistics, comparison: Comparison) -> None:
    """Unbiased over both samples, by all pairs of different records."""
    outside, *_ = both_parts(DATA)
    omega = report_frequencies(SPEC, FEATURE_PAIRS)
    real, made = (
        fourier_features(rows, omega) for rows in (outside, comparison.synthetic.directions)
    )

    def within(features: Vector) -> float:
        gram = features @ features.T
        n = len(features)
        return float((gram.sum() - np.trace(gram)) / (n * (n - 1)))

    slow = within(real) + within(made) - 2.0 * float(real.mean(axis=0) @ made.mean(axis=0))
    assert slow > 0
    assert found.sites[0].mmd2.value == pytest.approx(slow, rel=0.02, abs=2e-5)


def test_the_pool_is_of_all_units(found: Statistics) -> None:
    one, other = found.sites
    units = one.held_out.value + other.held_out.value
    assert found.pooled.client == ""
    assert found.pooled.held_out.value == pytest.approx(units, abs=0.01)
    weighted = (
        one.accuracy.value * one.held_out.value + other.accuracy.value * other.held_out.value
    ) / units
    assert found.pooled.accuracy.value == pytest.approx(weighted, abs=1e-4)
    assert found.missing == ()
    assert (found.sensitivity, found.noise_std) == (1.0, 1e-4)


def test_many_classes_are_right_or_wrong() -> None:
    spec = spec_of(noise=TINY, classes=20)
    data = worlds.clusters(1_000, classes=20)
    done = simulate(spec, [SimulatedSite("a", data)], noise=seeded(0), secret=worlds.SECRET)
    statistics = read(spec, done.rounds[-1].weights)
    assert statistics is not None
    site = statistics.pooled
    assert site.confusion is None
    assert site.domains == {}  # of one client alone there is nothing to compare
    assert len(site.recall) == 20
    out = held_out(spec, "a", data)
    classifier = Comparison.read(spec, inputs_of(done, spec.last_round)).reference.classifiers[0]
    said = (data.directions @ classifier[:, :-1].T + classifier[:, -1]).argmax(axis=1)
    assert site.accuracy.value == pytest.approx((said == data.y)[out].mean(), abs=1e-3)


# --- errors that are as large as they say ---


def of_vector(comparison: Comparison, vector: Vector, std: float) -> SiteStatistics:
    return SiteEstimator(SPEC, comparison.reference, vector, std).all("a")


FIGURES: dict[str, Callable[[SiteStatistics], Estimate]] = {
    "held_out": lambda s: s.held_out,
    "members": lambda s: s.members,
    "accuracy": lambda s: s.accuracy,
    "recall": lambda s: s.recall[1],
    "domain": lambda s: s.domains["b"],
    "mmd2": lambda s: s.mmd2,
    "inside": lambda s: s.inside,
    "closer": lambda s: s.closer,
    "median": lambda s: s.median_ratio,
    "auc": lambda s: s.attack_auc,
    "bin": lambda s: Estimate(s.nearest.values[5], s.nearest.se[5]),
    "cell": lambda s: Estimate(s.map.values[6, 6], s.map.se[6, 6]),
}


def test_standard_errors_of_the_noise(run: Simulated, comparison: Comparison) -> None:
    """Over draws of noise that is large against sampling, figures stray by what they say."""
    signal, std = query(SPEC, run, DATA), 12.0
    truth = of_vector(comparison, signal, 1e-6)
    draw = np.random.default_rng(11)
    seen = [of_vector(comparison, signal + std * draw.standard_normal(signal.size), std)
            for _ in range(60)]  # fmt: skip
    for name, figure in FIGURES.items():
        errors = np.array([figure(site).value - figure(truth).value for site in seen])
        said = math.sqrt(np.mean([figure(site).se ** 2 for site in seen]))
        # Sampling is in what is said but does not vary here.
        assert 0.45 < errors.std() / said < 1.35, name
        assert abs(errors.mean()) < 4.0 * errors.std() / math.sqrt(len(errors)) + 0.15 * said, name


def test_standard_errors_of_the_sampling(comparison: Comparison) -> None:
    """Other records of the same distribution, hardly any noise."""
    population = worlds.clusters(12_000, seed=3, spread=1.6)
    seen = []
    for part in np.array_split(np.arange(12_000), 40):
        own = EmbeddingDataset.from_arrays(population.x[part], population.y[part])
        members = EmbeddingDataset.from_arrays(own.x[:150], own.y[:150])
        other = EmbeddingDataset.from_arrays(own.x[150:], own.y[150:])
        seen.append(of_vector(comparison, report_sum(comparison, other, members), 1e-4))
    for name, figure in FIGURES.items():
        if name in ("held_out", "members"):  # how many there are, is no sample of anything
            continue
        spread = np.array([figure(site).value for site in seen]).std()
        said = math.sqrt(np.mean([figure(site).se ** 2 for site in seen]))
        assert 0.6 < spread / said < 1.5, name


def test_noise_alone_finds_nothing(comparison: Comparison) -> None:
    """An empty site under large noise: finite, and no claim of a leak."""
    draw = np.random.default_rng(5)
    size = sum(math.prod(shape) for _, shape in blocks.blocks(SPEC))
    for _ in range(20):
        site = of_vector(comparison, 30.0 * draw.standard_normal(size), 30.0)
        for figure in FIGURES.values():
            assert np.isfinite([figure(site).value, figure(site).se]).all()
        assert site.epsilon_lower == 0.0


# --- the attack ---


def leaky(comparison: Comparison, members: EmbeddingDataset) -> Comparison:
    """A generator that hands out its training records."""
    return replace(comparison, synthetic=Synthetic(members.directions))


def test_a_generator_that_copies_is_found_out(comparison: Comparison) -> None:
    members = worlds.clusters(2_000, seed=7, spread=1.6)
    others = worlds.clusters(2_000, seed=8, spread=1.6)
    copied = of_vector(comparison, report_sum(leaky(comparison, members), others, members), 0.5)
    assert copied.attack_auc.value > 0.95
    assert copied.closer_members.value > 0.95 > 0.3 > copied.closer.value
    assert copied.epsilon_lower > 2.0
    # The same copies under so much noise that nothing can be said.
    vector = report_sum(leaky(comparison, members), others, members)
    noise = 2_000 * np.random.default_rng(1).standard_normal(vector.size)
    assert of_vector(comparison, vector + noise, 2_000.0).epsilon_lower == 0.0


def test_the_bound_is_seldom_above_the_truth(comparison: Comparison) -> None:
    """Members and others alike: the truth is 0, and 95 % of bounds say so."""
    zeros = 0
    for seed in range(40):
        data = worlds.clusters(1_200, seed=100 + seed, spread=1.6)
        halves = [EmbeddingDataset.from_arrays(data.x[i::2], data.y[i::2]) for i in (0, 1)]
        vector = report_sum(comparison, halves[0], halves[1])
        noise = 5.0 * np.random.default_rng(seed).standard_normal(vector.size)
        zeros += of_vector(comparison, vector + noise, 5.0).epsilon_lower == 0.0
    assert zeros >= 38


def test_randomised_response_is_bounded_by_its_epsilon(comparison: Comparison) -> None:
    """A rate of 3/4 among members and 1/4 among others: epsilon is log 3, and the bound is below
    it and not far.
    """
    layout = dict(blocks.blocks(SPEC))
    weights = blocks.weights()
    parts = []
    for name, shape in layout.items():
        block = np.zeros(shape)
        part, _, kind = name.partition(".")
        share = 0.75 if part == blocks.MEMBERS else 0.25
        if kind == "count":
            block[0] = 20_000
        if kind == "nearest":
            block[[2, 9]] = 20_000 * share, 20_000 * (1.0 - share)
        if kind == "ratio":
            block[0] = 20_000
        parts.append(weights[name] * block.ravel())
    site = of_vector(comparison, np.concatenate(parts), 1.0)
    assert 0.85 * math.log(3.0) < site.epsilon_lower < math.log(3.0)
    assert site.attack_auc.value == pytest.approx(0.75, abs=0.01)


# --- files ---


def test_a_damaged_file_is_refused(run: Simulated) -> None:
    content, metadata = tensors.unpack(run.rounds[-1].weights)
    whole = {name: np.array(value) for name, value in content.items()}
    for broken, said in (
        (whole | {"report.vectors": whole["report.vectors"][:1]}, metadata),
        (whole | {"report.vectors": np.full_like(whole["report.vectors"], np.nan)}, metadata),
        (whole, metadata | {"report_clients": "no list"}),
        ({n: v for n, v in whole.items() if n != "report.map"}, metadata),
    ):
        with pytest.raises(tensors.TensorFileError):
            read(SPEC, tensors.pack(broken, said))


def test_reading_is_the_same_twice(run: Simulated, found: Statistics) -> None:
    again = read(SPEC, run.rounds[-1].weights)
    assert again is not None
    assert again.pooled.accuracy == found.pooled.accuracy
    np.testing.assert_array_equal(again.pooled.map.se, found.pooled.map.se)
