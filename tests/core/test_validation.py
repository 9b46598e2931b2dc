"""The validation round: who takes part, what is released, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from core.data import EmbeddingDataset
from core.federation import choice
from core.federation.plan import Noise, Plan, PrivacyPlan, RunSpec, calibrate
from core.federation.rule import resolved, validation_share
from core.models.candidates import candidates
from core.privacy import accounting
from core.privacy.coins import CoinStream
from core.privacy.mechanism import sensitivity
from core.privacy.noise import seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.training.local import clipped_total
from core.training.validation import CLASSIFIERS, part_of, read_classifiers, right_answers
from core.wire import tensors
from tests.core import worlds

NOISE = Noise(sketch_multiplier=0.05, train_multiplier=0.5, validate_multiplier=0.2)
SITE = SimulatedSite("a", worlds.clusters(500))


def spec_of(privacy: Mapping[str, Any] | None = None, **changes: Any) -> RunSpec:
    asked = {"rounds": 2, "validation_share": 0.3, "clip_norm": 1.0} | dict(privacy or {})
    return worlds.spec(privacy=asked, noise=changes.pop("noise", NOISE), **changes)


SPEC = spec_of()
LAST = SPEC.last_round


@pytest.fixture(scope="module")
def run() -> Simulated:
    return simulate(SPEC, [SITE], noise=seeded(0), secret=worlds.SECRET)


def coins(number: int, attempt: int = 1, secret: bytes = worlds.SECRET) -> CoinStream:
    return CoinStream(secret, SPEC.run_id, number, attempt)


def valid(number: int, data: EmbeddingDataset = SITE.data, attempt: int = 1) -> NDArray[np.bool_]:
    return part_of(SPEC, number, data, coins(number, attempt)).valid


# --- who takes part ---


def test_rounds_and_their_kinds() -> None:
    kinds = [SPEC.kind(number) for number in range(LAST + 2)]
    assert kinds == ["sketch", "train", "train", "validate", "join"]
    without = spec_of({"validation_share": 0.0})
    assert [without.kind(number) for number in range(4)] == ["sketch", "train", "train", "join"]


def test_a_unit_is_in_one_part_only_in_every_round_and_attempt() -> None:
    held_out = valid(LAST)
    assert 0.2 < held_out.mean() < 0.4
    for number in (0, 1, 2):
        for attempt in (1, 2):
            np.testing.assert_array_equal(valid(number, attempt=attempt), ~held_out)
    assert valid(LAST + 1).all()  # who joins later gives one sketch of all units
    other = part_of(SPEC, LAST, SITE.data, coins(LAST, secret=bytes(32))).valid
    assert not np.array_equal(other, held_out)


def test_records_of_a_unit_stay_together_and_others_do_not_move_it() -> None:
    data = worlds.with_units(SITE.data, np.arange(500) // 5)
    held_out = valid(LAST, data)
    assert (held_out.reshape(-1, 5).all(axis=1) | ~held_out.reshape(-1, 5).any(axis=1)).all()
    fewer = worlds.without_unit(data, data.unit[10])
    np.testing.assert_array_equal(valid(LAST, fewer), np.delete(held_out, slice(10, 15)))


def test_defect_a_part_by_position_moves_other_units() -> None:
    """The first 30 % as the validation part: who is removed pushes another unit over the border."""
    first = SITE.data.valid & (np.arange(500) < 150)
    fewer = worlds.without_unit(SITE.data, SITE.data.unit[10])
    after = fewer.valid & (np.arange(499) < 150)
    assert not np.array_equal(np.delete(first, 10), after)


# --- what is released ---


def query(run: Simulated, data: EmbeddingDataset) -> NDArray[np.float64]:
    last = run.rounds[-2]
    inputs = {"frame": last.frame, "weights": last.weights}
    return clipped_total(SPEC, LAST, "a", data, inputs, coins(LAST))


def test_right_answers_against_a_slow_count(run: Simulated) -> None:
    each = read_classifiers(SPEC, run.rounds[-2].weights)
    held_out = valid(LAST)
    slow = np.zeros(len(each))
    for row in np.flatnonzero(held_out):
        for j, (weight, bias) in enumerate(zip(each[:, :, :-1], each[:, :, -1], strict=True)):
            slow[j] += (weight @ SITE.data.directions[row] + bias).argmax() == SITE.data.y[row]
    np.testing.assert_allclose(query(run, SITE.data), slow / np.sqrt(3))


def test_one_unit_moves_the_answer_by_less_than_the_sensitivity(run: Simulated) -> None:
    assert sensitivity(SPEC, LAST) == 1.0
    data = worlds.with_units(SITE.data, np.arange(500) // 3)
    before = query(run, data)
    moved = [
        np.linalg.norm(before - query(run, worlds.without_unit(data, unit)))
        for unit in data.unit_ids[:60]
    ]
    assert 0.5 < max(moved) <= 1.0 + 1e-9


def test_defect_records_counted_one_by_one_move_it_further(run: Simulated) -> None:
    data = worlds.with_units(SITE.data, np.arange(500) // 5)
    each = read_classifiers(SPEC, run.rounds[-2].weights)

    def by_record(of: EmbeddingDataset) -> NDArray[np.float64]:
        single = EmbeddingDataset.from_arrays(of.x, of.y)
        return right_answers(single, each)

    moved = np.linalg.norm(by_record(data) - by_record(worlds.without_unit(data, data.unit[0])))
    assert moved > 1.5


@pytest.mark.parametrize("spoil", ["missing", "shape", "nan"])
def test_unusable_classifiers_fail_whatever_the_records(run: Simulated, spoil: str) -> None:
    content, metadata = tensors.unpack(run.rounds[-2].weights)
    broken = {name: np.array(value) for name, value in content.items()}
    if spoil == "missing":
        del broken[CLASSIFIERS]
    elif spoil == "shape":
        broken[CLASSIFIERS] = broken[CLASSIFIERS][1:]
    else:
        broken[CLASSIFIERS][0, 0, 0] = np.nan
    inputs = {"frame": run.rounds[-2].frame, "weights": tensors.pack(broken, metadata)}
    for data in (SITE.data, EmbeddingDataset.from_arrays(SITE.data.x[:0], SITE.data.y[:0])):
        with pytest.raises(tensors.TensorFileError, match="candidates"):
            clipped_total(SPEC, LAST, "a", data, inputs, coins(LAST))


# --- what it costs ---


def test_the_round_is_paid_for() -> None:
    privacy = PrivacyPlan(
        epsilon=2.0, delta=1e-5, n_max=1000, rounds=5, sketch_steps=1, sketch_share=0.6,
        validation_share=0.1,
    )  # fmt: skip
    noise = calibrate(privacy)
    spec = worlds.spec(privacy=privacy.model_dump(), noise=noise)
    events = spec.events()
    assert len(events) == 7
    assert accounting.epsilon(events, 1e-5) == pytest.approx(2.0, rel=1e-3)
    assert accounting.epsilon(events[:-1], 1e-5) < 1.99
    assert spec.event(6).noise_multiplier == noise.validate_multiplier
    assert noise.train_multiplier is not None
    assert noise.train_multiplier > (
        calibrate(privacy.model_copy(update={"validation_share": 0.0})).train_multiplier or 0.0
    )


def test_the_rule_validates_where_noise_is_small() -> None:
    plan = Plan(
        name="p", space="clusters",
        privacy=PrivacyPlan(epsilon=8.0, delta=1e-8, n_max=1_000_000), purpose="simulation",
    )  # fmt: skip
    for units, share in ((1_000, 0.0), (1_000_000, 0.1)):
        privacy = plan.privacy.model_copy(update={"units_expected": units})
        privacy = resolved(privacy, worlds.space(), 3)
        assert validation_share(plan, privacy, 3) == share


def test_a_plan_without_a_choice_has_no_validation_round() -> None:
    with pytest.raises(ValidationError, match="validation_share"):
        Plan.model_validate(
            spec_of({"clip_norm": 0.0}).plan.model_dump() | {"guidance": {"labels": "none"}}
        )
    with pytest.raises(ValidationError, match="validation_share"):
        spec_of({"validation_share": 0.6})


# --- what the server makes of it ---


def test_candidates_follow_from_the_plan() -> None:
    assert candidates(SPEC.plan) == ("guided", "generator", "sketch")
    assert candidates(spec_of({"clip_norm": 0.0}).plan) == ("guided", "sketch")
    assert candidates(spec_of({"classifier_clip_norm": 0.0}).plan) == ("generator", "sketch")


def decided(run: Simulated, accuracy: list[float], noise_std: float = 0.0) -> str:
    units = float(run.generator.frame.sizes[0]) * 0.3 / 0.7
    total = np.array(accuracy) * units / np.sqrt(3)
    best, estimated = choice.chosen(SPEC, run.generator.frame, ["a"], total, noise_std)
    np.testing.assert_allclose(estimated, accuracy)
    return best


def test_another_candidate_must_be_better_than_chance_explains(run: Simulated) -> None:
    assert decided(run, [0.8, 0.7, 0.6]) == "guided"
    assert decided(run, [0.7, 0.7, 0.701]) == "guided"
    assert decided(run, [0.5, 0.8, 0.7]) == "generator"
    assert decided(run, [0.5, 0.7, 0.8]) == "sketch"
    assert decided(run, [0.5, 0.7, 0.8], noise_std=100.0) == "guided"


def test_the_estimates_are_near_the_truth_and_published(run: Simulated) -> None:
    content, metadata = tensors.unpack(run.rounds[-1].weights)
    assert metadata["chosen"] in candidates(SPEC.plan)
    assert CLASSIFIERS not in content
    each = read_classifiers(SPEC, run.rounds[-2].weights)
    test = worlds.clusters(2_000, seed=9)
    truth = right_answers(test, each) * np.sqrt(3) / 2_000
    np.testing.assert_allclose(content["validation"], truth, atol=0.12)


def test_a_bad_classifier_is_not_published() -> None:
    """Training noise that drowns everything, beside a good sketch."""
    loud = Noise(sketch_multiplier=0.05, train_multiplier=400.0, validate_multiplier=0.1)
    spec = spec_of(noise=loud, optimiser={"classifier_noise": 10.0})
    found = simulate(spec, [SITE], noise=seeded(3), secret=worlds.SECRET)
    _, metadata = tensors.unpack(found.rounds[-1].weights)
    assert metadata["chosen"] == "sketch"
    assert not found.generator.guided
    start = simulate(
        spec_of({"rounds": 0, "validation_share": 0.0}), [SITE], noise=seeded(3),
        secret=worlds.SECRET,
    )  # fmt: skip
    assert (
        start.generator.weights["decoder.1.weight"].any()
        == found.generator.weights["decoder.1.weight"].any()
    )
