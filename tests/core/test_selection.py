"""Client selection: balanced, the same everywhere, and paid for by who is chosen most often."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from core.federation.calibration import calibrate
from core.federation.plan import Plan, PrivacyPlan, RoundPlan, RunSpec
from core.federation.rule import spec_for
from core.federation.selection import cohort_size, participations, selected
from core.privacy import accounting
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate
from tests.core import worlds

BASE = worlds.spec(privacy={"rounds": 3, "validation_share": 0.0})


def spec_of(
    clients: int, fraction: float, *, quorum: int = 1, rounds: int = 3, run_id: str = "run-1",
    seed: int = 0, **privacy: Any,
) -> RunSpec:  # fmt: skip
    plan = BASE.plan.model_dump()
    plan |= {"round": {"client_fraction": fraction, "quorum": quorum}, "seed": seed}
    plan["privacy"] |= {"rounds": rounds} | privacy
    noise = BASE.noise.model_dump() | {"validate_multiplier": 1.0}
    many = clients if fraction < 1.0 else None
    return RunSpec.model_validate(
        BASE.model_dump()
        | {"run_id": run_id, "plan": plan, "noise": noise, "founding_clients": many}
    )


def chosen(spec: RunSpec, clients: int) -> list[tuple[int, ...]]:
    """Of every training round."""
    numbers = range(spec.sketch_rounds, spec.last_training_round + 1)
    return [selected(spec, clients, number) for number in numbers]


# --- who is chosen ---


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_everybody_is_chosen_as_often_to_within_one_and_never_above_the_stated_maximum(
    data: st.DataObject,
) -> None:
    clients = data.draw(st.integers(1, 30))
    quorum = data.draw(st.integers(1, clients))
    fraction = data.draw(st.floats(0.001, 0.999))
    rounds = data.draw(st.integers(1, 60))
    spec = spec_of(
        clients, fraction, quorum=quorum, rounds=rounds, seed=data.draw(st.integers(0, 2**63 - 1))
    )
    each = chosen(spec, clients)
    size = cohort_size(spec.plan.round, clients)
    assert quorum <= size <= clients
    assert size >= fraction * clients * (1 - 1e-12)
    for cohort in each:
        assert len(cohort) == size == len(set(cohort))
        assert list(cohort) == sorted(cohort)
        assert set(cohort) <= set(range(clients))
    counts = Counter(position for cohort in each for position in cohort)
    often = [counts[position] for position in range(clients)]
    assert max(often) == spec.participations == -(-rounds * size // clients)
    assert max(often) - min(often) <= 1


def test_the_size_of_a_cohort_is_that_of_the_decimal_that_was_written() -> None:
    assert 0.07 * 100 > 7  # the product of floats would make it 8
    assert cohort_size(RoundPlan(client_fraction=0.07), 100) == 7
    rules = RoundPlan(client_fraction=0.1)
    assert [cohort_size(rules, clients) for clients in (1, 10, 11, 30, 100)] == [1, 1, 2, 3, 10]
    assert cohort_size(RoundPlan(client_fraction=0.1, quorum=5), 30) == 5
    assert participations(rules, 10, 30) == 1
    assert participations(rules, 11, 30) == 2


def test_other_rounds_and_other_plans_are_of_all_clients() -> None:
    spec = spec_of(6, 0.5, validation_share=0.2)
    sizes = [len(selected(spec, 6, number)) for number in range(spec.last_round + 1)]
    assert [spec.kind(number) for number in range(5)] == ["sketch", *["train"] * 3, "validate"]
    assert sizes == [6, 3, 3, 3, 6]
    everybody = spec_of(6, 1.0)
    assert {selected(everybody, 6, number) for number in range(4)} == {tuple(range(6))}
    with pytest.raises(ValueError, match="join"):
        selected(spec, 6, spec.last_round + 1)
    with pytest.raises(ValueError, match="for 6 clients, not 7"):
        selected(spec, 7, 1)


_PRINT = """
import json, sys
from core.federation.plan import RunSpec
from core.federation.selection import selected
spec = RunSpec.model_validate_json(sys.stdin.read())
print(json.dumps([selected(spec, 11, n) for n in range(1, 31)]))
"""


def test_the_choice_is_the_same_in_every_process() -> None:
    spec = spec_of(11, 0.4, rounds=30)
    told = []
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", _PRINT], input=spec.model_dump_json(), text=True, check=True,
            capture_output=True, env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        told.append([tuple(cohort) for cohort in json.loads(done.stdout)])
    assert told[0] == told[1] == chosen(spec, 11)
    # Of a run that is under way: a choice that changed would let clients train too often.
    assert told[0][:3] == [(1, 2, 3, 5, 7), (0, 4, 6, 8, 9), (1, 2, 3, 5, 10)]


def test_other_runs_seeds_and_turns_choose_otherwise() -> None:
    spec = spec_of(20, 0.5, rounds=8)
    others = [spec_of(20, 0.5, rounds=8, run_id="run-2"), spec_of(20, 0.5, rounds=8, seed=1)]
    assert all(chosen(other, 20) != chosen(spec, 20) for other in others)
    assert len(set(chosen(spec, 20))) == 8  # four turns of two rounds: the circle is new each time


def test_each_position_is_as_likely_in_any_round() -> None:
    """Of 400 runs: no position is favoured in the first round, nor in one across a turn's end."""
    for number in (1, 4):
        counts = Counter(
            position
            for run in range(400)
            for position in selected(spec_of(7, 0.4, rounds=9, run_id=f"run-{run}"), 7, number)
        )
        assert sum(counts.values()) == 1_200
        seen = [counts[position] for position in range(7)]
        assert stats.chisquare(seen).pvalue > 1e-4


# --- what it costs ---


def calibrated(fraction: float, clients: int = 7, rounds: int = 5) -> RunSpec:
    privacy = PrivacyPlan(
        epsilon=2.0, delta=1e-5, n_max=1000, rounds=rounds, sketch_steps=1, sketch_share=0.6,
        validation_share=0.1, local_steps=2, sample_rate=0.5,
    )  # fmt: skip
    plan = BASE.plan.model_copy(
        update={"privacy": privacy, "round": RoundPlan(client_fraction=fraction)}
    )
    return spec_for("run-1", plan, worlds.space(), clients)


def executed(spec: RunSpec, clients: int, position: int) -> float:
    """Epsilon of one client over all rounds in which it is chosen."""
    numbers = [n for n in range(spec.last_round + 1) if position in selected(spec, clients, n)]
    return accounting.epsilon([spec.event(number) for number in numbers], 1e-5)


def test_noise_is_calibrated_for_the_client_that_is_chosen_most_often() -> None:
    spec = calibrated(0.4)
    assert (spec.founding_clients, spec.participations) == (7, 3)
    costs = [executed(spec, 7, position) for position in range(7)]
    assert max(costs) == accounting.epsilon(spec.events(), 1e-5)
    assert 2.0 * 0.985 <= max(costs) <= 2.0
    assert min(costs) < max(costs)
    everybody = calibrated(1.0)
    assert spec.noise.train_multiplier < everybody.noise.train_multiplier  # type: ignore[operator]
    # Nothing is claimed from the choice being random: three rounds cost what they always do.
    three = calibrated(1.0, rounds=3)
    assert spec.noise.train_multiplier == three.noise.train_multiplier
    assert accounting.epsilon(three.events(), 1e-5) == max(costs)


def test_defect_noise_for_the_average_number_of_rounds_overspends() -> None:
    """5 rounds of 3 of 7 clients are 2.14 rounds each on average; the unluckiest trains in 3."""
    spec = calibrated(0.4)
    wrong = spec.model_copy(
        update={"noise": calibrate(spec.plan.privacy, participations=5 * 3 // 7)}
    )
    costs = [executed(wrong, 7, position) for position in range(7)]
    assert max(costs) > 2.0 * 1.05
    assert min(costs) <= 2.0


def test_defect_amplification_by_a_public_choice_understates() -> None:
    """Booking the choice as secret sampling at rate q f: its epsilon is not that of the events."""
    spec = calibrated(0.4)
    booked = [
        event.model_copy(update={"sample_rate": event.sample_rate * 3 / 7})
        if event.mechanism == "poisson-subsampled-gaussian" else event
        for event in spec.events()
    ]  # fmt: skip
    assert accounting.epsilon(booked, 1e-5) < 0.95 * accounting.epsilon(spec.events(), 1e-5)


def test_a_simulated_run_trains_the_chosen_and_books_them_alone() -> None:
    spec = spec_of(3, 0.5, rounds=4, validation_share=0.2)
    sites = [SimulatedSite(name, worlds.clusters(60, seed=i)) for i, name in enumerate("abc")]
    seen: dict[int, list[str]] = {}
    run = simulate(
        spec, sites, noise=seeded(0), secret=worlds.SECRET,
        observe=lambda number, updates: seen.update({number: list(updates)}),
    )  # fmt: skip
    for number, names in seen.items():
        assert names == ["abc"[position] for position in selected(spec, 3, number)]
    booked = [len(run.events[name]) - 2 for name in "abc"]  # but for sketch and validation
    assert sum(booked) == 4 * 2
    assert max(booked) == spec.participations == 3
    assert max(run.events.values(), key=len) == tuple(spec.events())
    with pytest.raises(ValueError, match="client_fraction"):
        simulate(spec, sites, noise=seeded(0), noise_mode="aggregated")


# --- plans and what was stored ---


def test_a_stored_specification_keeps_its_digest_and_its_bytes() -> None:
    """Written before plans could select clients: agents of before read what is sent today."""
    stored = json.loads((Path(__file__).parent / "stored_spec.json").read_text())
    spec = RunSpec.model_validate(stored["spec"])
    assert spec.digest == stored["digest"]
    assert spec.model_dump(mode="json") == stored["spec"]
    given = json.loads(json.dumps(stored["spec"]))
    given["plan"]["round"]["client_fraction"] = 1.0
    assert RunSpec.model_validate(given).digest == stored["digest"]


def test_the_digest_binds_the_selection() -> None:
    digests = {
        spec_of(6, 1.0).digest,
        spec_of(6, 0.5).digest,
        spec_of(6, 0.6).digest,
        spec_of(7, 0.5).digest,
    }
    assert len(digests) == 4
    spec = spec_of(6, 0.5)
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_a_fraction_is_a_share(fraction: float) -> None:
    with pytest.raises(ValidationError, match="client_fraction"):
        RoundPlan(client_fraction=fraction)


def test_selection_needs_training_rounds_and_the_number_of_clients() -> None:
    plan = BASE.plan.model_dump()
    with pytest.raises(ValidationError, match=r"round\.client_fraction: acts in training"):
        Plan.model_validate(
            plan | {"round": {"client_fraction": 0.5}, "privacy": plan["privacy"] | {"rounds": 0}}
        )
    spec = spec_of(6, 0.5)
    with pytest.raises(ValidationError, match="founding_clients"):
        RunSpec.model_validate(spec.model_dump() | {"founding_clients": None})
    with pytest.raises(ValidationError, match="founding_clients"):
        RunSpec.model_validate(BASE.model_dump() | {"founding_clients": 6})
    with pytest.raises(ValidationError, match=r"round\.quorum: 7 cannot be reached by 6"):
        spec_of(6, 0.5, quorum=7)


@given(
    rounds=st.integers(1, 6),
    fraction=st.sampled_from([0.3, 0.6, 1.0]),
    draw=st.data(),
)
@settings(deadline=None, max_examples=50)
def test_what_is_done_and_what_is_left_are_the_plan(
    rounds: int, fraction: float, draw: st.DataObject
) -> None:
    """Of the sketches and as many training rounds as one client is taken into at most."""
    spec = spec_of(7, fraction, rounds=rounds)
    training = [n for n in range(spec.last_round + 1) if spec.kind(n) == "train"]
    others = [n for n in range(spec.last_round + 1) if spec.kind(n) != "train"]
    done = draw.draw(st.sets(st.sampled_from(others)))
    trained = draw.draw(st.sets(st.sampled_from(training), max_size=spec.participations))
    executed = [spec.event(n) for n in done | trained]
    assert Counter(executed) + Counter(spec.events(done | trained)) == Counter(spec.events())
    assert spec.events(()) == spec.events()
    joined = {spec.last_round + 1}
    assert spec.events(joined) == spec.events()
