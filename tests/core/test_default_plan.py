"""The plan as it is by default, over a whole run: every query of every round on D and on D'.

Classifier, two sketch steps, guided labels; with and without a validation round. The run is that
of D with its real server, and D' is asked the same questions of the same published files with the
same coins: what it would have added before noise may differ by the round's sensitivity at most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import Plan, PrivacyPlan, RunSpec
from core.federation.rule import spec_for
from core.models.candidates import candidates
from core.privacy import accounting
from core.privacy.coins import CoinStream
from core.privacy.mechanism import sensitivity
from core.privacy.noise import seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.synthesis.request import SynthesisRequest
from core.training.local import clipped_total
from tests.core import worlds
from tests.core.posted import SLACK, clip_norms_moved
from tests.core.test_neighbours import mixed_units

Query = Callable[[EmbeddingDataset], NDArray[np.float64]]
WHOLE_RUNS = pytest.mark.parametrize(
    ("rounds", "validation_share"), [(1, None), (5, None), (50, None), (5, 0.3)]
)


@cache
def spec_of(rounds: int, validation_share: float | None) -> RunSpec:
    """Nothing is given but what has no default; and the validation share, where it is."""
    privacy = PrivacyPlan(
        epsilon=8.0, delta=1e-5, n_max=30, rounds=rounds, validation_share=validation_share
    )
    plan = Plan(name="default", space="clusters", privacy=privacy, purpose="simulation")
    return spec_for("run-1", plan, worlds.space(), clients=1)


@cache
def run_of(rounds: int, validation_share: float | None) -> tuple[EmbeddingDataset, Simulated]:
    """D, and its run."""
    data = mixed_units(rounds)
    site = SimulatedSite("a", data)
    spec = spec_of(rounds, validation_share)
    return data, simulate(spec, [site], noise=seeded(rounds), secret=worlds.SECRET)


def query_of(spec: RunSpec, run: Simulated, number: int) -> Query:
    """The sum of a round before noise, given the files that the rounds before have published."""
    before = run.rounds[number - 1]
    inputs = {} if number == 0 else {"frame": before.frame, "weights": before.weights}
    coins = CoinStream(worlds.SECRET + b"a", spec.run_id, number, 1)
    return lambda data: clipped_total(spec, number, "a", data, inputs, coins)


@WHOLE_RUNS
def test_every_query_of_a_default_run_stays_within_its_sensitivity(
    rounds: int, validation_share: float | None
) -> None:
    spec = spec_of(rounds, validation_share)
    data, run = run_of(rounds, validation_share)
    fewer = {unit: worlds.without_unit(data, unit) for unit in data.unit_ids}
    furthest: dict[str, float] = {}
    for number in range(spec.last_round + 1):
        query, kind, bound = (
            query_of(spec, run, number),
            spec.kind(number),
            sensitivity(spec, number),
        )
        whole = query(data)
        for neighbour in fewer.values():
            moved = whole - query(neighbour)
            share = float(np.linalg.norm(moved)) / bound
            furthest[kind] = max(furthest.get(kind, 0.0), share)
            if kind == "train":
                assert clip_norms_moved(spec, moved) <= SLACK
    kinds = {"sketch", "spread", "train"} | ({"validate"} if validation_share else set())
    assert set(furthest) == kinds
    assert all(0.1 < share <= SLACK for share in furthest.values())


@WHOLE_RUNS
def test_a_default_run_trains_a_classifier_and_pays_for_every_round(
    rounds: int, validation_share: float | None
) -> None:
    spec = spec_of(rounds, validation_share)
    privacy = spec.plan.privacy
    assert sensitivity(spec, spec.last_training_round) == np.hypot(0.25, 2.0)
    assert (privacy.clip_norm, privacy.classifier_clip_norm) == (0.25, 2.0)
    assert privacy.sample_rate == 1.0
    assert candidates(spec.plan)[0] == "guided"
    _, run = run_of(rounds, validation_share)
    assert list(run.events["a"]) == spec.events()
    assert 7.9 < accounting.epsilon(spec.events(), 1e-5) <= 8.0
    if not validation_share:
        samples = run.generator.sample(SynthesisRequest.model_validate({"run": "r", "n": 30}), 1)
        assert samples.guided
        assert np.isfinite(samples.x).all()


@pytest.mark.parametrize("rounds", [1, 5, 50])
def test_defect_noise_of_the_generators_clip_norm_alone(rounds: int) -> None:
    """S that forgets the classifier: its part of the sum moves much further than that."""
    spec = spec_of(rounds, None)
    data, run = run_of(rounds, None)
    query = query_of(spec, run, spec.last_training_round)
    moved = [
        float(np.linalg.norm(query(data) - query(worlds.without_unit(data, unit))))
        for unit in data.unit_ids
    ]
    assert max(moved) > 2 * spec.plan.privacy.clip_norm
