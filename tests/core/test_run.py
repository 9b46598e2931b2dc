"""A whole simulated run, aggregation, sampling and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from core import errors
from core.evaluation.baselines.class_means import class_means
from core.evaluation.utility import tstr
from core.federation import aggregate as aggregation
from core.federation.optimiser import server_step
from core.federation.plan import PrivacyPlan, calibrate
from core.privacy import accounting
from core.privacy.noise import csprng, seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.storage import sha256_of
from core.synthesis.request import MAX_ROWS, SynthesisRequest
from core.synthesis.sampler import Generator
from core.synthesis.streams import BLOCK_ROWS
from core.training.local import execute, release
from core.wire.messages import AggregateInput, AggregateJob, WorkOrder
from tests.core import worlds

SITES = [
    SimulatedSite(name, worlds.clusters(400, seed=s, shift=0.1 * s)) for s, name in enumerate("ab")
]


@pytest.fixture(scope="module")
def run() -> Simulated:
    privacy = PrivacyPlan(
        epsilon=4.0,
        delta=1e-5,
        n_max=1000,
        rounds=4,
        sample_rate=0.5,
        sketch_steps=1,
        sketch_share=0.8,
        validation_share=0.0,
    )
    spec = worlds.spec(privacy=privacy.model_dump(), noise=calibrate(privacy))
    return simulate(spec, SITES, noise=seeded(0), secret=worlds.SECRET)


def request(**changes: object) -> SynthesisRequest:
    return SynthesisRequest.model_validate({"run": "r", "n": 300} | changes)


def test_synthetic_rows_train_a_classifier_that_works_on_real_ones(run: Simulated) -> None:
    samples = run.generator.sample(request(n=2_000), seed=1)
    test = worlds.clusters(500, seed=77)
    ours = tstr(samples.x, samples.y, test.x, test.y).accuracy
    real = tstr(SITES[0].data.x, SITES[0].data.y, test.x, test.y).accuracy
    baseline = class_means(
        [s.data for s in SITES],
        worlds.space(),
        epsilon=4.0,
        delta=1e-5,
        n_max=1000,
        noise=seeded(0),
    )
    simple = tstr(*baseline.sample(2_000, seed=1), test.x, test.y).accuracy
    assert ours > simple - 0.02
    assert ours > real - 0.1


def test_executed_events_stay_within_the_plans_epsilon(run: Simulated) -> None:
    for done in run.events.values():
        assert len(done) == 5
        assert accounting.epsilon(done, 1e-5) <= 4.0


def test_a_seeded_simulation_is_reproducible_to_the_byte(run: Simulated) -> None:
    again = simulate(run.generator.spec, SITES, noise=seeded(0), secret=worlds.SECRET)
    assert [r.weights for r in again.rounds] == [r.weights for r in run.rounds]
    other = simulate(run.generator.spec, SITES, noise=seeded(1), secret=worlds.SECRET)
    assert other.rounds[-1].weights != run.rounds[-1].weights


def test_seeded_noise_is_refused_in_production() -> None:
    spec = worlds.spec(purpose="production")
    order = WorkOrder(
        work_id="w", run_id="run-1", client_id="a", client="a", round_number=0, kind="sketch",
        attempt=1, lease_token="t", lease_s=9, spec=spec, spec_digest=spec.digest,
        event=spec.event(0), update_layout=spec.digest, max_update_bytes=10_000,
    )  # fmt: skip
    with pytest.raises(errors.PlanRefused):
        execute(order, SITES[0].data, {}, secret=worlds.SECRET, noise=seeded(0))
    first, second = (
        execute(order, SITES[0].data, {}, secret=worlds.SECRET, noise=csprng()) for _ in range(2)
    )
    assert first != second  # every execution is a new draw: callers store and resend bytes


# --- the server's step ---


def job(run: Simulated, number: int) -> tuple[AggregateJob, dict[str, bytes]]:
    last = run.rounds[number - 1]
    inputs = {"frame": last.frame, "weights": last.weights}
    objects = {sha256_of(b): b for b in (last.frame, last.weights, last.optimiser)}
    updates = []
    for site in SITES:
        body = release(
            run.generator.spec, number, 1, site.name, site.data, inputs,
            secret=worlds.SECRET, noise=seeded(3),
        ).update  # fmt: skip
        objects[sha256_of(body)] = body
        updates.append(
            AggregateInput(client_id=site.name, client=site.name, digest=sha256_of(body))
        )
    made = AggregateJob(
        job_id="j", lease_token="t", lease_s=1, run_id="run-1", round_number=number, kind="train",
        spec=run.generator.spec, updates=tuple(updates), frame=sha256_of(last.frame),
        weights=sha256_of(last.weights), optimiser=sha256_of(last.optimiser),
    )  # fmt: skip
    return made, objects


def test_replaying_a_round_gives_the_same_bytes(run: Simulated) -> None:
    made, objects = job(run, 2)
    first = aggregation.aggregate(made, objects.__getitem__)
    assert aggregation.aggregate(made, objects.__getitem__) == first
    fewer = made.model_copy(update={"updates": made.updates[:1]})
    assert aggregation.aggregate(fewer, objects.__getitem__) != first


def test_aggregation_needs_updates_and_a_model(run: Simulated) -> None:
    made, objects = job(run, 2)
    with pytest.raises(ValueError, match="without updates"):
        aggregation.aggregate(made.model_copy(update={"updates": ()}), objects.__getitem__)
    with pytest.raises(ValueError, match="previous frame"):
        aggregation.aggregate(made.model_copy(update={"frame": None}), objects.__getitem__)


@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_server_step_is_the_textbook_optimiser(kind: str) -> None:
    spec = worlds.spec(optimiser={"kind": kind, "learning_rate": 0.05})
    phi = np.random.default_rng(0).normal(size=7)
    tensor = torch.from_numpy(phi.copy()).requires_grad_()
    theirs: torch.optim.Optimizer = (
        torch.optim.Adam([tensor], lr=0.05, betas=(0.9, 0.99), eps=1e-8)
        if kind == "adam"
        else torch.optim.SGD([tensor], lr=0.05, momentum=0.9)
    )
    first, second = np.zeros(7), np.zeros(7)
    for step in range(1, 6):
        gradient: NDArray[np.float64] = np.random.default_rng(step).normal(size=7)
        phi, first, second = server_step(spec, step, phi, gradient, first, second)
        tensor.grad = torch.from_numpy(gradient)
        theirs.step()
    np.testing.assert_allclose(phi, tensor.detach().numpy(), rtol=1e-10)


# --- sampling ---


def test_the_same_request_and_seed_give_the_same_rows(run: Simulated) -> None:
    last = run.rounds[-1]
    again = Generator.load(last.frame, last.weights, run.generator.spec)
    a, b = run.generator.sample(request(), 5), again.sample(request(), 5)
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.y, b.y)
    assert not np.array_equal(a.x, run.generator.sample(request(), 6).x)


def test_rows_lie_on_the_sphere_and_a_longer_request_begins_with_the_shorter(
    run: Simulated,
) -> None:
    long = run.generator.sample(request(n=BLOCK_ROWS + 10), 1).x
    short = run.generator.sample(request(n=50), 1).x
    np.testing.assert_allclose(np.linalg.norm(long, axis=1), np.sqrt(12), rtol=1e-5)
    np.testing.assert_array_equal(long[:50], short)
    assert not np.allclose(long[:10], long[BLOCK_ROWS:])


def test_class_counts_are_exact_and_proportions_follow_the_pool(run: Simulated) -> None:
    samples = run.generator.sample(request(n=None, class_counts={"class-1": 3, "class-2": 2}), 0)
    assert sorted(samples.labels()) == ["class-1"] * 3 + ["class-2"] * 2
    drawn = np.bincount(run.generator.sample(request(n=6_000), 0).y, minlength=3) / 6_000
    np.testing.assert_allclose(drawn, run.generator.frame.class_probs, atol=0.03)


def test_mixtures_move_the_means_towards_the_named_site(run: Simulated) -> None:
    means = {}
    for name, mixture in {"a": {"a": 1.0}, "b": {"b": 1.0}, "ab": {"a": 0.5, "b": 0.5}}.items():
        means[name] = run.generator.sample(request(n=4_000, mixture=mixture), 0).x.mean(axis=0)
    neutral = run.generator.sample(request(n=4_000), 0).x.mean(axis=0)
    own = SITES[1].data.directions.mean(axis=0) * np.sqrt(12)
    assert np.linalg.norm(means["b"] - own) < np.linalg.norm(neutral - own)
    np.testing.assert_allclose(means["ab"], (means["a"] + means["b"]) / 2, atol=0.1)


def test_unknown_clients_and_classes_name_the_field(run: Simulated) -> None:
    with pytest.raises(errors.UnknownMixtureClient) as unknown:
        run.generator.sample(request(mixture={"zebra": 1.0}), 0)
    assert unknown.value.field == "mixture.zebra"
    assert "a, b" in str(unknown.value)
    with pytest.raises(errors.InvalidSynthesisRequest) as wrong:
        run.generator.sample(request(n=None, class_counts={"cat": 1}), 0)
    assert wrong.value.field == "class_counts.cat"
    with pytest.raises(errors.InvalidSynthesisRequest) as wrong:
        run.generator.sample(request(labels={"class-1": 1, "cat": 1}), 0)
    assert wrong.value.field == "labels.cat"
    with pytest.raises(errors.UnknownMixtureClient):
        run.generator.rows(request(mode="sample", mixture={"a": 1, "zebra": 0}), 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 0}, "greater than or equal to 1"),
        ({"n": MAX_ROWS + 1}, "less than or equal"),
        ({"n": None}, "exactly one"),
        ({"class_counts": {"a": 1}}, "exactly one"),
        ({"n": None, "class_counts": {"a": 0}}, "sum to"),
        ({"n": None, "class_counts": {"a": -1}}, "greater than or equal to 0"),
        ({"mixture": {"a": 1.5, "b": -0.5}}, "greater than or equal to 0"),
        ({"mixture": {"a": 0.0}}, "at least one"),
        ({"mixture": "everybody"}, "neutral"),
        ({"mode": "sample"}, "needs a mixture"),
        ({"mode": "mix"}, "blend"),
        ({"labels": {"a": -1}}, "greater than or equal to 0"),
        ({"labels": {}}, "at least one"),
        ({"labels": "balanced"}, "uniform"),
        ({"n": None, "class_counts": {"a": 1}, "labels": "uniform"}, "says already"),
        ({"temperature": 0}, "greater than 0"),
        ({"temperature": 4.1}, "less than or equal to 4"),
        ({"temperature": float("inf")}, "finite"),
        ({"mixture": {"a": float("nan")}}, "finite"),
        ({"mixture": {}}, "at least one"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_bad_requests_say_what_is_wrong(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        request(**change)
