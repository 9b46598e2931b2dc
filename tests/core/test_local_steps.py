"""Several DP-SGD steps in one round: each is clipped, noised, paid for, and drawn anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from core.errors import UpdateNoiseImplausible
from core.federation.plan import PrivacyPlan, RunSpec, calibrate
from core.federation.updates import TENSOR, check_update, expectation
from core.models.layout import NULL_COORDINATES, layout_of, shared_layout, train_layout
from core.privacy import accounting
from core.privacy.coins import CoinStream
from core.privacy.events import release as event_of
from core.privacy.mechanism import sensitivity
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate
from core.training import local_steps
from core.training.gradients import clipped_sum
from core.wire import tensors
from tests.core import worlds
from tests.core.posted import (
    SLACK,
    Follower,
    Recorder,
    clip_norms_moved,
    moved_between,
    start,
    update_of,
)
from tests.core.test_neighbours import mixed_units

SITES = [
    SimulatedSite(name, worlds.clusters(60, seed=s, shift=0.1 * s)) for s, name in enumerate("ab")
]


def spec_of(steps: int, **privacy: Any) -> RunSpec:
    return worlds.spec(privacy={"local_steps": steps, "n_max": 60, **privacy})


def vector(body: bytes) -> NDArray[np.float64]:
    return np.asarray(tensors.unpack(body)[0][TENSOR], np.float64)


class Counting:
    """A source that remembers every draw that it gave."""

    private = False

    def __init__(self) -> None:
        self.drawn: list[tuple[int, float]] = []
        self._source = seeded(0)

    def normal(self, size: int, std: float) -> NDArray[np.float64]:
        self.drawn.append((size, std))
        return self._source.normal(size, std)


# --- accounting ---


@pytest.mark.parametrize("steps", [1, 4])
def test_every_step_that_draws_noise_is_in_the_event_of_its_round(steps: int) -> None:
    spec, noise = spec_of(steps), Counting()
    run = simulate(spec, SITES[:1], noise=noise, secret=worlds.SECRET)
    per_round = [event.steps for event in run.events["a"]]
    assert per_round == [1, steps, steps, steps]
    assert len(noise.drawn) == sum(per_round)
    expected = spec.event(1).noise_multiplier * sensitivity(spec, 1)
    size = train_layout(spec).size + NULL_COORDINATES
    assert set(noise.drawn[1:]) == {(size, expected)}


def test_epsilon_is_that_of_all_steps_of_all_rounds() -> None:
    privacy = PrivacyPlan(
        epsilon=3.0,
        delta=1e-5,
        n_max=60,
        rounds=3,
        local_steps=5,
        sample_rate=0.3,
        sketch_steps=1,
        sketch_share=0.8,
        validation_share=0.0,
    )
    spec = worlds.spec(privacy=privacy.model_dump(), noise=calibrate(privacy))
    sketch, train = spec.event(0), spec.event(1)
    one = event_of(noise_multiplier=train.noise_multiplier, sample_rate=0.3, unit="record")
    spent = accounting.epsilon(spec.events(), 1e-5)
    assert spent == accounting.epsilon([sketch, *[one] * 15], 1e-5)
    assert 2.9 < spent <= 3.0


def test_defect_one_charge_for_all_steps_of_a_round() -> None:
    """E steps cost E times what a round of one step costs; the target would be passed."""
    planned = PrivacyPlan(
        epsilon=2.0,
        delta=1e-5,
        n_max=60,
        rounds=5,
        sample_rate=0.3,
        sketch_steps=1,
        sketch_share=0.8,
        validation_share=0.0,
    )
    ran = planned.model_copy(update={"local_steps": 8})
    spec = worlds.spec(privacy=ran.model_dump(), noise=calibrate(planned))
    booked = [event.model_copy(update={"steps": 1}) for event in spec.events()]
    assert accounting.epsilon(booked, 1e-5) <= 2.0
    assert accounting.epsilon(spec.events(), 1e-5) > 2.0 * 1.2
    assert calibrate(ran).train_multiplier > 1.5 * calibrate(planned).train_multiplier  # type: ignore[operator]


def test_a_plan_of_too_many_steps_names_the_field_and_the_mend() -> None:
    with pytest.raises(ValidationError, match=r"local_steps: .* lower local_steps or rounds"):
        worlds.spec(privacy={"local_steps": 11, "rounds": 10_000})
    for wrong in ({"local_steps": 0}, {"local_steps": 65}, {"local_learning_rate": 0.0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            worlds.spec(privacy=wrong)


# --- what is posted ---


def test_one_step_posts_what_a_round_without_local_steps_posts() -> None:
    spec, data = spec_of(1), SITES[0].data
    inputs, frame, weights = start(spec)
    coins = CoinStream(worlds.SECRET, spec.run_id, 1, 1)
    total = clipped_sum(spec, data, frame, weights, "a", coins)
    noise = seeded(5).normal(total.size + NULL_COORDINATES, sensitivity(spec, 1))
    by_hand = np.concatenate([total, np.zeros(NULL_COORDINATES)]) + noise
    body = update_of(spec, 1, data, inputs, seeded(5))
    np.testing.assert_array_equal(vector(body), by_hand.astype(np.float32))


def test_steps_are_dp_sgd_by_hand() -> None:
    """The slow reference: E steps, each written out, at a learning rate that matters."""
    spec, data = spec_of(3, local_learning_rate=2.0), SITES[0].data
    inputs, frame, weights = start(spec)
    size, noise, posted = train_layout(spec).size, seeded(5), 0.0
    batch = spec.plan.privacy.sample_rate * frame.sizes[0]
    for step in range(3):
        coins = CoinStream(worlds.SECRET, spec.run_id, 1, 1).at_step(step)
        total = clipped_sum(spec, data, frame, weights, "a", coins)
        padded = np.concatenate([total, np.zeros(NULL_COORDINATES)])
        drawn = noise.normal(padded.size, sensitivity(spec, 1))
        noised = (padded + drawn).astype(np.float32).astype(np.float64)
        posted = posted + noised
        weights = weights - 2.0 * noised[:size] / batch
    ours = vector(update_of(spec, 1, data, inputs, seeded(5)))
    np.testing.assert_allclose(ours, posted, rtol=1e-6, atol=1e-6)


def test_null_coordinates_carry_the_noise_of_all_steps() -> None:
    spec, one = spec_of(9), spec_of(1)
    inputs, _, _ = start(spec)
    null = []
    for seed in range(8):
        body = update_of(spec, 1, SITES[0].data, inputs, seeded(seed))
        check_update(body, expectation(spec, 1))
        with pytest.raises(UpdateNoiseImplausible):  # three times what one step would have
            check_update(
                tensors.pack(
                    {TENSOR: vector(body).astype(np.float32)},
                    {"layout": layout_of(one, 1).digest},
                ),
                expectation(one, 1),
            )
        null.append(vector(body)[-NULL_COORDINATES:])
    assert np.std(null) == pytest.approx(3.0 * sensitivity(spec, 1), rel=0.05)
    assert expectation(spec, 1).noise_std == pytest.approx(3.0 * sensitivity(spec, 1))
    assert expectation(spec, 0).noise_std == expectation(one, 0).noise_std


def test_the_server_divides_by_the_steps() -> None:
    """Two steps at weights that do not move give twice the sum of one: the same mean gradient."""
    kept = {"local_learning_rate": 1e-12, "sample_rate": 1.0}
    optimiser = {"kind": "momentum", "learning_rate": 1.0}
    quiet = worlds.spec().noise.model_copy(update={"train_multiplier": 1e-9})
    moves = []
    for steps in (1, 2):
        privacy = {"local_steps": steps, "n_max": 60, "rounds": 1, **kept}
        spec = worlds.spec(
            privacy=privacy, optimiser=optimiser, noise=quiet, model={"code_dropout": 0.0}
        )
        run = simulate(spec, SITES, noise=seeded(1), secret=worlds.SECRET)
        before, after = (
            np.asarray(tensors.unpack(made.weights)[0]["phi"], np.float64) for made in run.rounds
        )
        moves.append(after - before)
    network = shared_layout(spec)
    classifier = network.places(network.only(lambda group: group == "classifier"))
    generator = np.setdiff1d(np.arange(network.size), classifier)
    # The classifier's step is set by the noise of the mean: sqrt(2) less of it, as much further.
    for places, further in ((generator, 1.0), (classifier, np.sqrt(2.0))):
        one, two = (move[places] for move in moves)
        # Latent draws differ between steps, so the two agree as noisy means of the same do.
        assert further * np.linalg.norm(one) == pytest.approx(np.linalg.norm(two), rel=0.1)
        assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.9


def test_a_frame_without_a_positive_size_is_refused_before_records_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dataclasses import replace

    spec = spec_of(2)
    inputs, frame, _ = start(spec)
    empty = replace(frame, sizes=np.zeros(2)).to_bytes(spec.digest)
    monkeypatch.setattr(local_steps, "clipped_sum", lambda *_, **__: pytest.fail("was used"))
    with pytest.raises(tensors.TensorFileError, match="sizes"):
        update_of(spec, 1, SITES[0].data, inputs | {"frame": empty}, seeded(0))


def test_noise_in_the_sum_over_sites_is_refused() -> None:
    with pytest.raises(ValueError, match=r"privacy\.local_steps"):
        simulate(spec_of(2), SITES, noise=seeded(0), noise_mode="aggregated")


# --- neighbours ---


@pytest.mark.parametrize("form", ["film", "lowrank", "full"])
def test_each_local_step_stays_within_its_sensitivity(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real release on D, then on each D', made to follow the same noised sums: the weights of
    every step are the same and every query before noise moves by at most S.
    """
    spec = worlds.spec(
        privacy={
            "local_steps": 5, "local_learning_rate": 3.0, "clip_norm": 0.3, "sample_rate": 0.9,
            "n_max": 30,
        },
        model={"form": form},
    )  # fmt: skip
    inputs, _, _ = start(spec)
    data, bound = mixed_units(3), sensitivity(spec, 1) * SLACK
    with Recorder(monkeypatch) as recorded:
        update_of(spec, 1, data, inputs, seeded(1))
    assert len(recorded.steps) == 5
    moved = 0.0
    for unit in data.unit_ids:
        with Follower(monkeypatch, recorded) as followed:
            update_of(spec, 1, worlds.without_unit(data, unit), inputs, seeded(2))
        for ours, theirs in zip(recorded.steps, followed.steps, strict=True):
            np.testing.assert_array_equal(ours.weights, theirs.weights)
            distance = float(np.linalg.norm(ours.total - theirs.total))
            assert distance <= bound
            assert clip_norms_moved(spec, ours.total - theirs.total) <= SLACK
            moved = max(moved, distance)
    assert moved > 0.5 * bound


def test_defect_local_weights_moved_by_sums_without_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Noise only on what is posted: the second step's query sees the protected unit's gradient."""
    spec = worlds.spec(
        privacy={
            "local_steps": 3, "local_learning_rate": 30.0, "clip_norm": 0.1, "sample_rate": 1.0,
            "n_max": 30,
        },
        model={"code_dropout": 0.5},
    )  # fmt: skip
    inputs, _, _ = start(spec)
    data, bound = mixed_units(3), sensitivity(spec, 1) * SLACK
    everything = np.arange(train_layout(spec).size)
    with Recorder(monkeypatch, everything) as recorded:
        update_of(spec, 1, data, inputs, seeded(1))
    worst = 0.0
    for unit in data.unit_ids:
        with Follower(monkeypatch, recorded, everything) as other:
            update_of(spec, 1, worlds.without_unit(data, unit), inputs, seeded(1))
        worst = max(worst, *moved_between(recorded, other))
    assert worst > bound


# --- a batch and noise of its own ---


def included(step: int) -> NDArray[np.bool_]:
    units = [f"unit-{i}".encode() for i in range(20_000)]
    coins = CoinStream(worlds.SECRET, "run-1", 1, 1).at_step(step)
    return coins.bernoulli("inclusion", units, 0.3)


def test_batches_of_steps_are_independent() -> None:
    """A unit is in k of E batches as a binomial says; a second look at one batch is no sampling."""
    batches = np.array([included(step) for step in range(5)], float)
    correlations = np.corrcoef(batches)[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(20_000)
    np.testing.assert_array_equal(
        included(0), CoinStream(worlds.SECRET, "run-1", 1, 1).bernoulli(
            "inclusion", [f"unit-{i}".encode() for i in range(20_000)], 0.3
        ),
    )  # fmt: skip


def test_defect_one_batch_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coins used again: a unit is in all batches or in none, and amplification is void."""
    spec, data = spec_of(4), worlds.clusters(60)
    inputs, frame, _ = start(spec)

    def batches() -> list[NDArray[np.int64]]:
        from core.training.gradients import Batch

        with Recorder(monkeypatch) as recorded:
            update_of(spec, 1, data, inputs, seeded(1))
        return [Batch.draw(spec, data, frame, "a", step.coins).rows for step in recorded.steps]

    ours = {tuple(rows.tolist()) for rows in batches()}
    assert len(ours) == 4
    monkeypatch.setattr(CoinStream, "at_step", lambda self, _: self)
    assert len({tuple(rows.tolist()) for rows in batches()}) == 1


def test_defect_one_draw_of_noise_for_all_steps() -> None:
    """The same noise E times has E^2 the variance of one: the null coordinates say so."""

    class Again:
        private = False

        def normal(self, size: int, std: float) -> NDArray[np.float64]:
            return seeded(7).normal(size, std)

    spec = spec_of(4)
    inputs, _, _ = start(spec)
    with pytest.raises(UpdateNoiseImplausible):
        check_update(update_of(spec, 1, SITES[0].data, inputs, Again()), expectation(spec, 1))
