"""Trimmed sums: against slow references, under poison, and the noise that the server is told."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import integrate, stats

from core.federation import aggregate as aggregation
from core.federation.aggregate import Aggregated
from core.federation.label_shift import Centre, LabelShift
from core.federation.plan import Plan, RunSpec
from core.federation.robust import PlainSum, TrimmedSum, sum_of, trim_count, trimmed_noise_gain
from core.federation.server import Gradient
from core.federation.updates import expectation
from core.models.frame import Frame
from core.models.label_shift import LABEL_SHIFT
from core.models.layout import layout_of, posted_layout, shared_layout
from core.privacy import accounting
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate
from core.wire import tensors
from tests.core import rounds, worlds

Matrix = NDArray[np.float64]
MOMENTUM = {"kind": "momentum", "momentum": 0.5, "learning_rate": 0.1}


def spec_of(aggregation: str = "trimmed-mean", share: float = 0.2, quorum: int = 5) -> RunSpec:
    spec = worlds.spec(optimiser=MOMENTUM)
    plan = spec.plan.model_dump() | {"aggregation": aggregation, "round": {"quorum": quorum}}
    if aggregation != "plain":
        plan["trim_share"] = share
    return RunSpec.model_validate(spec.model_dump() | {"plan": plan})


def slow(vectors: Matrix, trimmed: int) -> Matrix:
    """M times the mean of each coordinate's middle values, one coordinate at a time."""
    out = []
    for column in vectors.T:
        ordered = sorted(column.tolist())
        kept = ordered[trimmed : len(ordered) - trimmed]
        out.append(len(ordered) * math.fsum(kept) / len(kept))
    return np.array(out)


def streamed(vectors: Matrix, trimmed: int) -> Matrix:
    summed = TrimmedSum(vectors.shape[1], len(vectors), trimmed)
    for vector in vectors:
        summed.add(vector)
    return summed.total()


# --- the sum ---


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_it_is_the_sorted_mean_in_each_coordinate(data: st.DataObject) -> None:
    updates = data.draw(st.integers(1, 12))
    trimmed = data.draw(st.integers(0, (updates - 1) // 2))
    size = data.draw(st.integers(1, 4))
    numbers = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, -0.0, 1.0]))
    vectors = np.array(
        data.draw(st.lists(numbers, min_size=updates * size, max_size=updates * size))
    ).reshape(updates, size)
    np.testing.assert_allclose(
        streamed(vectors, trimmed), slow(vectors, trimmed), rtol=1e-12, atol=1e-6
    )


def test_what_is_trimmed_never_enters_a_sum_in_which_it_could_cancel() -> None:
    draw = np.random.default_rng(0)
    honest = draw.normal(size=(9, 50))
    for place in (0, 4, 9):  # wherever in the order it comes
        poisoned = np.insert(honest, place, 1e30, axis=0)
        np.testing.assert_allclose(streamed(poisoned, 2), slow(poisoned, 2), rtol=1e-12)


def test_defect_a_total_minus_its_extremes_loses_everything_else() -> None:
    draw = np.random.default_rng(0)
    poisoned = np.insert(draw.normal(size=(9, 50)), 4, 1e30, axis=0)
    ordered = np.sort(poisoned, axis=0)
    difference = (
        (poisoned.sum(axis=0) - ordered[:1].sum(axis=0) - ordered[-1:].sum(axis=0)) * 10 / 8
    )
    assert not np.allclose(difference, slow(poisoned, 1))


def test_memory_does_not_grow_with_the_number_of_clients_beyond_what_is_trimmed() -> None:
    """Measured over 300 updates of 20,000 coordinates: they are not kept."""
    size, trimmed, updates = 20_000, 3, 300
    tracemalloc.start()
    summed = TrimmedSum(size, updates, trimmed)
    vector = np.ones(size, np.float32)
    for _ in range(updates):
        summed.add(vector)
    total = summed.total()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(total, updates)
    temporary = 4 + trimmed  # vectors, for a moment
    assert peak < (1 + 3 * trimmed + temporary) * size * 8 + 500_000  # and the noise's integral
    assert peak < 0.1 * updates * size * 8


def test_a_sum_needs_all_of_its_vectors_and_something_in_the_middle() -> None:
    with pytest.raises(ValueError, match="cannot be trimmed"):
        TrimmedSum(7, 4, 2)
    with pytest.raises(ValueError, match="0 of 100 vectors"):
        TrimmedSum(7, 100, 10).total()


def test_the_count_is_that_of_the_decimal_that_was_written() -> None:
    assert 0.29 * 100 < 29  # the product of floats would make it 28
    assert trim_count(0.29, 100) == 29
    assert [trim_count(0.1, n) for n in (9, 10, 19, 20)] == [0, 1, 1, 2]
    assert [trim_count(0.49, n) for n in (1, 2, 3, 5)] == [0, 0, 1, 2]


# --- the noise of the sum ---


def test_known_values_of_the_noise() -> None:
    """Medians of 3 and 5 Gaussians in closed form and from tables; nothing trimmed: the root."""
    assert trimmed_noise_gain(7, 0) == math.sqrt(7)
    assert trimmed_noise_gain(3, 1) == pytest.approx(
        3 * math.sqrt(1 - math.sqrt(3) / math.pi), rel=1e-6
    )
    assert trimmed_noise_gain(5, 2) == pytest.approx(5 * math.sqrt(0.2868336617), rel=1e-6)


def test_the_noise_against_an_integral_over_the_order_statistics_that_are_kept() -> None:
    """M = 4, t = 1: the mean of the second and third, from their own joint density."""

    def integrand(high: float, low: float) -> float:
        density = 24.0 * stats.norm.cdf(low) * stats.norm.sf(high)
        density *= stats.norm.pdf(low) * stats.norm.pdf(high)
        return float(((low + high) / 2.0) ** 2 * density)

    second, _ = integrate.dblquad(integrand, -9, 9, lambda low: low, 9, epsabs=1e-9)
    assert trimmed_noise_gain(4, 1) == pytest.approx(4.0 * math.sqrt(second), rel=1e-5)


@pytest.mark.parametrize(("updates", "trimmed"), [(5, 1), (10, 1), (10, 4), (20, 2), (101, 30)])
def test_the_noise_against_simulation(updates: int, trimmed: int) -> None:
    draws = np.random.default_rng(1).normal(size=(updates, 200_000))
    found = float(np.std(streamed(draws, trimmed)))
    assert trimmed_noise_gain(updates, trimmed) == pytest.approx(found, rel=5e-3)


def test_the_noise_of_many_clients_follows_the_asymptotic_formula() -> None:
    """Without a share a at each end: E[square, winsorised at its quantile] / (1 - 2 a)^2."""
    share = 0.1
    z = float(stats.norm.isf(share))
    inner = 1.0 - 2.0 * share - 2.0 * z * float(stats.norm.pdf(z))
    limit = math.sqrt(inner + 2.0 * share * z**2) / (1.0 - 2.0 * share)
    assert trimmed_noise_gain(10_000, 1_000) / 100.0 == pytest.approx(limit, rel=1e-4)


def gradient_of(
    spec: RunSpec, clients: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Gradient, float]:
    """What the server step is given in a round of pure noise, and the noise found in it."""
    seen: list[Gradient] = []
    real = aggregation.advance

    def advance(spec: RunSpec, frame: Frame, step: int, state: Any, gradient: Gradient) -> Any:
        seen.append(gradient)
        return real(spec, frame, step, state, gradient)

    monkeypatch.setattr(aggregation, "advance", advance)
    first = rounds.aggregated(spec, 0, rounds.sketches(spec, clients))
    found = []
    draw = np.random.default_rng(2)
    for _ in range(12):
        std, size = expectation(spec, 1).noise_std, layout_of(spec, 1).size
        vectors = [std * draw.normal(size=size) for _ in range(clients)]
        rounds.aggregated(spec, 1, vectors, first)
        found.append(float(np.mean(seen[-1].values ** 2)))
    return seen[-1], math.sqrt(float(np.mean(found)))


@pytest.mark.parametrize(("name", "share"), [("plain", 0.0), ("trimmed-mean", 0.4)])
def test_the_server_is_told_the_noise_that_there_is(
    name: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, found = gradient_of(spec_of(name, share), 10, monkeypatch)
    assert told.noise_std == pytest.approx(found, rel=0.03)
    if name != "plain":  # the known-wrong version: the noise of a plain sum
        assert told.noise_std * math.sqrt(10) / trimmed_noise_gain(10, 4) < 0.9 * found


# --- what it is a sum of ---


def test_small_signals_under_noise_are_weighted_like_in_the_plain_sum() -> None:
    """Sites of very different sizes: the trimmed sum is the sum of what their units add."""
    signal = np.array([0.02, 0.05, 0.1, 0.2, 0.6])  # sums over units, noise 1
    draws = np.random.default_rng(3).normal(size=(5, 400_000)) + signal[:, None]
    found = float(np.mean(streamed(draws, 1)))
    assert found == pytest.approx(float(signal.sum()), abs=0.05)


def test_defect_means_per_unit_let_the_small_noisy_sites_go_first() -> None:
    """The same signals as means over units of sites of 10 to 300: noise 1 / n, weight n."""
    units = np.array([10.0, 25.0, 50.0, 100.0, 300.0])
    draws = np.random.default_rng(3).normal(size=(5, 50_000)) / units[:, None]
    order = np.argsort(draws, axis=0)
    trimmed = np.stack([order[0], order[-1]])
    assert float((trimmed == 0).any(axis=0).mean()) > 0.75  # the smallest site, nearly always
    assert float((trimmed == 4).any(axis=0).mean()) < 0.2  # the largest, seldom
    sums = np.argsort(draws * units[:, None], axis=0)  # of sums, each as often as any
    assert float((sums[[0, -1]] == 0).any(axis=0).mean()) == pytest.approx(0.4, abs=0.02)


# --- rounds ---


def round_of(spec: RunSpec, poison: float | None, clients: int = 10) -> tuple[Aggregated, Matrix]:
    """A training round; client 7 posts ``poison`` times a pattern. Also what the others posted."""
    first = rounds.aggregated(spec, 0, rounds.sketches(spec, clients))
    size, std = layout_of(spec, 1).size, expectation(spec, 1).noise_std
    draw = np.random.default_rng(4)
    vectors = std * draw.normal(size=(clients, size))
    honest = np.delete(vectors, 7, axis=0)
    if poison is not None:
        vectors[7] = poison * np.sign(draw.normal(size=size))
    return rounds.aggregated(spec, 1, list(vectors), first), honest


def first_moment(made: Aggregated) -> Matrix:
    """[P shared] of heavy-ball momentum after one step: the mean gradient."""
    return np.asarray(tensors.unpack(made.optimiser)[0]["first"], np.float64)


def batch_of(spec: RunSpec, made: Aggregated) -> float:
    return spec.plan.privacy.sample_rate * float(Frame.from_bytes(made.frame).sizes.sum())


def within_the_others(spec: RunSpec, made: Aggregated, honest: Matrix) -> bool:
    """Is every coordinate of the mean update between the smallest and largest honest one?"""
    shared = posted_layout(spec).places(shared_layout(spec))
    mean = first_moment(made) * batch_of(spec, made) / 10
    kept = honest.astype(np.float32).astype(np.float64)[:, shared]
    slack = 1e-12 * np.abs(kept).max()
    return bool(((mean >= kept.min(axis=0) - slack) & (mean <= kept.max(axis=0) + slack)).all())


def test_a_round_is_the_slow_reference_and_a_replay_gives_the_same_bytes() -> None:
    spec = spec_of(share=0.3)
    made, honest = round_of(spec, 5.0)
    again, _ = round_of(spec, 5.0)
    assert again == made
    draw = np.random.default_rng(4)
    draw.normal(size=(10, honest.shape[1]))
    pattern = 5.0 * np.sign(draw.normal(size=honest.shape[1]))
    vectors = np.insert(honest, 7, pattern, axis=0).astype(np.float32).astype(np.float64)
    shared = posted_layout(spec).places(shared_layout(spec))
    np.testing.assert_allclose(
        first_moment(made), slow(vectors, 3)[shared] / batch_of(spec, made), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("poison", [1e2, 1e6, 1e30])
def test_one_poisoned_client_moves_the_model_by_a_bounded_amount(poison: float) -> None:
    spec = spec_of()
    made, honest = round_of(spec, poison)
    assert within_the_others(spec, made, honest)
    # However large: beyond the honest values nothing depends on it any more.
    assert tensors.unpack(made.weights)[0]["phi"].tobytes() == (
        tensors.unpack(round_of(spec, 1e9)[0].weights)[0]["phi"].tobytes()
    )


def test_defect_a_plain_sum_is_carried_away_by_one_client() -> None:
    spec = spec_of("plain")
    distances = []
    for poison in (1e2, 1e4, 1e6):
        made, honest = round_of(spec, poison)
        assert not within_the_others(spec, made, honest)
        distances.append(float(np.linalg.norm(first_moment(made))))
    assert distances[1] > 50 * distances[0]
    assert distances[2] > 50 * distances[1]


def test_as_many_poisoned_clients_as_are_trimmed_and_not_one_more() -> None:
    draw = np.random.default_rng(5)
    honest = draw.normal(size=(8, 40))
    two = streamed(np.concatenate([honest, np.full((2, 40), 1e9)]), 2) / 10
    assert (two <= honest.max(axis=0)).all()
    three = streamed(np.concatenate([honest[:7], np.full((3, 40), 1e9)]), 2) / 10
    assert (three > 1e7).all()


def shifts(made: Aggregated) -> Matrix:
    return np.asarray(tensors.unpack(made.weights)[0][LABEL_SHIFT], np.float64)


def test_one_poisoned_client_does_not_move_the_others_label_shifts_without_limit() -> None:
    """Deviations are taken from the trimmed sum, too; with a plain one they would follow."""
    others = np.arange(10) != 7
    quiet = np.abs(shifts(round_of(spec_of(), None)[0])).max()
    small, large = (shifts(round_of(spec_of(), poison)[0])[others] for poison in (1e4, 1e8))
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-6)
    assert np.abs(large).max() < 100 * max(quiet, 0.1)
    plain = shifts(round_of(spec_of("plain"), 1e8)[0])[others]
    assert np.abs(plain).min() > 1e3


def test_the_noise_of_a_deviation_from_the_trimmed_sum() -> None:
    """Its booked variance is the one found, for sites of different sizes."""
    spec = spec_of(share=0.4)
    frame = Frame.from_bytes(rounds.aggregated(spec, 0, rounds.sketches(spec, 10)).frame)
    sizes = np.linspace(20.0, 200.0, 10)
    frame = type(frame)(**{**frame.__dict__, "sizes": sizes})
    draw = np.random.default_rng(6)
    start = LabelShift.start(spec, 10)
    assert start is not None
    deviations = []
    for _ in range(8_000):
        biases = 3.0 * draw.normal(size=(10, 3))
        centre = Centre(streamed(biases, 4), trimmed_noise_gain(10, 4))
        after = start.after(frame, dict(enumerate(biases)), 3.0, centre)
        deviations.append(after.sums)
    found = np.mean(np.square(deviations), axis=(0, 2))
    np.testing.assert_allclose(found, after.noise, rtol=0.05)


# --- plans ---


def test_epsilon_is_that_of_the_plain_run() -> None:
    """Every update carries its noise before anything is trimmed: events do not change."""
    assert spec_of().events() == spec_of("plain").events()
    sites = [SimulatedSite(f"s{i}", worlds.clusters(40, seed=i)) for i in range(5)]
    run = simulate(spec_of(), sites, noise=seeded(0), secret=worlds.SECRET)
    for done in run.events.values():
        assert list(done) == spec_of("plain").events()
        assert accounting.epsilon(done, 1e-5) == accounting.epsilon(spec_of().events(), 1e-5)
    with pytest.raises(ValueError, match="'trimmed-mean' compares"):
        simulate(spec_of(), sites, noise=seeded(0), noise_mode="aggregated")


def test_a_plan_sums_plainly_unless_it_says_otherwise() -> None:
    plain = spec_of("plain")
    assert isinstance(sum_of(plain.plan, 3, 10), PlainSum)
    assert plain.plan.model_dump(mode="json")["aggregation"] == "plain"
    assert "trim_share" not in plain.plan.model_dump(mode="json")
    trimmed = spec_of(share=0.1, quorum=10)
    assert isinstance(sum_of(trimmed.plan, 3, 10), TrimmedSum)
    assert RunSpec.model_validate_json(trimmed.model_dump_json()) == trimmed
    assert len({plain.digest, trimmed.digest, spec_of(share=0.3).digest}) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trim_share": 0.0}, "trim_share"),
        ({"trim_share": 0.5}, "trim_share"),
        ({"round": {"quorum": 9}}, r"trim_share: 0\.1 of 9 updates.*quorum to 10"),
        ({"trim_share": 0.3, "round": {"quorum": 3}}, r"trim_share: 0\.3 of 3 .*quorum to 4"),
        ({"aggregation": "plain", "trim_share": 0.2}, "trim_share: belongs to"),
        ({"aggregation": "median"}, "aggregation"),
    ],
)
def test_plans_that_would_trim_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    good = worlds.spec().plan.model_dump()
    good |= {"aggregation": "trimmed-mean", "round": {"quorum": 10}}
    Plan.model_validate(good)
    with pytest.raises(ValidationError, match=words):
        Plan.model_validate(good | changes)
    sketch = {"privacy": good["privacy"] | {"rounds": 0, "sketch_share": None}}
    with pytest.raises(ValidationError, match="aggregation: 'trimmed-mean' is of training"):
        Plan.model_validate(good | sketch)
