"""Trained codes: sketch code plus an offset that is clipped, noised and posted like the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from core.federation.aggregate import Aggregated, aggregate, pack_weights
from core.federation.offsets import Offsets
from core.federation.optimiser import server_step
from core.federation.plan import RunSpec
from core.federation.updates import TENSOR, check_update, expectation
from core.models.architecture import architecture_of
from core.models.codes import AVERAGE, OFFSETS, predicted_offsets
from core.models.frame import Frame
from core.models.hypernetwork import HyperCVAE
from core.models.layout import posted_layout, shared_layout, train_layout
from core.privacy.coins import CoinStream
from core.privacy.mechanism import clip_rule, sensitivity
from core.privacy.noise import seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.storage import sha256_of
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from core.training import local_steps
from core.training.compute import Compute
from core.training.gradients import Batch, clipped_sum
from core.training.local import release
from core.wire import tensors
from core.wire.messages import AggregateInput, AggregateJob
from tests.core import worlds
from tests.core.posted import (
    SLACK,
    Follower,
    Recorder,
    clip_norms_moved,
    start,
    update_of,
)
from tests.core.test_neighbours import FORMS, mixed_units

Vector = NDArray[np.float64]
SITES = [
    SimulatedSite(name, worlds.clusters(80, seed=s, shift=0.2 * s)) for s, name in enumerate("abc")
]


def spec_of(model: dict[str, Any] | None = None, **privacy: Any) -> RunSpec:
    return worlds.spec(
        model={"codes": "trained"} | (model or {}), privacy={"n_max": 80, **privacy},
        optimiser={"learning_rate": 0.05},
    )  # fmt: skip


def content(body: bytes) -> dict[str, Vector]:
    return {name: np.asarray(value) for name, value in tensors.unpack(body)[0].items()}


def joint(spec: RunSpec, frame: Frame, offset: Vector, seed: int = 1) -> Vector:
    """Weights [P] of a run that has learnt something, for client a with an offset."""
    draw = np.random.default_rng(seed)
    weights = 0.4 * draw.normal(size=train_layout(spec).size)
    weights[-offset.size :] = frame.code("a") + offset
    return weights


# --- gradients ---


@pytest.mark.parametrize("form", FORMS)
def test_clipped_sum_with_a_trained_code_is_that_of_a_loop_over_records(form: str) -> None:
    """The network sees code plus offset, class means the sketch's code; both engines agree."""
    spec = spec_of({"form": form}, clip_norm=2.0, classifier_clip_norm=1.5, sample_rate=0.7)
    _, frame, _ = start(spec)
    offset = np.array([0.5, -1.0, 0.3, 0.8])
    weights, coins = joint(spec, frame, offset), CoinStream(worlds.SECRET, "run-1", 1, 1)
    data = worlds.clusters(30, seed=4)
    batch = Batch.draw(spec, data, frame, "a", coins)
    module = HyperCVAE(architecture_of(spec)).double()
    parts = train_layout(spec).split(weights)
    module.load({name: torch.from_numpy(np.array(part)) for name, part in parts.items()})
    classifier = train_layout(spec).only(lambda group: group == "classifier")
    of_classifier = np.zeros(weights.size, bool)
    of_classifier[train_layout(spec).places(classifier)] = True
    assert of_classifier.sum() == 3 * 13
    total = np.zeros(weights.size)
    for place in range(len(batch.rows)):
        inputs = [torch.from_numpy(part) for part in batch.inputs(np.array([place]))]
        coin = torch.tensor([[0.0 if batch.code_of[place] else 1.0]], dtype=torch.float64)
        seen = torch.from_numpy(batch.features(np.array([place])))
        module.zero_grad()
        module(*inputs, coin, seen).sum().backward()
        row = torch.cat([p.grad.flatten() for p in module.parameters()]).numpy()
        for part, clip_norm in ((~of_classifier, 2.0), (of_classifier, 1.5)):
            total += np.where(part, row, 0.0) * min(1.0, clip_norm / np.linalg.norm(row[part]))
    assert np.abs(total[-4:]).max() > 0.01
    for engine in ("ghost", "opacus"):
        ours = clipped_sum(spec, data, frame, weights, "a", coins, compute=Compute(engine=engine))
        assert np.linalg.norm(ours - total) <= 2e-5 * np.linalg.norm(total)
    moved = replace(frame, codes=frame.codes + 5.0)  # class means follow the sketch's code
    other = clipped_sum(spec, data, moved, weights, "a", coins)
    assert np.linalg.norm(other - total) > 1e-3 * np.linalg.norm(total)


@pytest.mark.parametrize("engine", ["ghost", "opacus"])
def test_a_neutral_unit_adds_nothing_to_the_code(engine: Any) -> None:
    spec = spec_of({"code_dropout": 1.0}, sample_rate=1.0)
    _, frame, _ = start(spec)
    weights, coins = joint(spec, frame, np.ones(4)), CoinStream(worlds.SECRET, "run-1", 1, 1)
    total = clipped_sum(
        spec, SITES[0].data, frame, weights, "a", coins, compute=Compute(engine=engine)
    )
    assert np.abs(total[:-4]).max() > 0.1
    np.testing.assert_array_equal(total[-4:], 0.0)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_posted_vector_with_the_code_stays_within_its_sensitivity(
    form: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = {"trunk": 0.1, "code": 0.2} if steps == 3 else {}
    spec = spec_of(
        {"form": form}, clip_norm=0.3, sample_rate=0.9, local_steps=steps,
        local_learning_rate=2.0, block_clip_norms=norms,
    )  # fmt: skip
    inputs, frame, _ = start(spec)
    inputs["weights"] = _weights(spec, np.array([[0.7, -0.2, 0.4, 1.0]] * 2))
    data, bound = mixed_units(2), sensitivity(spec, 1) * SLACK
    generator = 0.3 if steps == 1 else np.sqrt(0.14)
    assert bound == pytest.approx(np.hypot(generator, 2.0), rel=1e-5)
    with Recorder(monkeypatch) as recorded:
        update_of(spec, 1, data, inputs, seeded(1))
    assert not np.allclose(recorded.steps[0].weights[-4:], frame.code("a"))
    for unit in data.unit_ids:
        with Follower(monkeypatch, recorded) as followed:
            update_of(spec, 1, worlds.without_unit(data, unit), inputs, seeded(2))
        for ours, theirs in zip(recorded.steps, followed.steps, strict=True):
            np.testing.assert_array_equal(ours.weights, theirs.weights)
            assert np.linalg.norm(ours.total - theirs.total) <= bound
            assert clip_norms_moved(spec, ours.total - theirs.total) <= SLACK


def test_defect_code_noised_but_left_out_of_the_norm() -> None:
    """Clipping phi to C and adding the code's gradient as it is: the joint vector is longer."""
    spec = spec_of({"code_dropout": 0.0}, clip_norm=0.1, sample_rate=1.0)
    _, frame, _ = start(spec)
    weights, coins = joint(spec, frame, np.ones(4)), CoinStream(worlds.SECRET, "run-1", 1, 1)
    data, bound = worlds.clusters(10), sensitivity(spec, 1) * SLACK
    free = spec_of({"code_dropout": 0.0}, clip_norm=1e6, sample_rate=1.0)

    def defective(d: Any) -> Vector:
        clipped = clipped_sum(spec, d, frame, weights, "a", coins)
        clipped[-4:] = clipped_sum(free, d, frame, weights, "a", coins)[-4:]
        return clipped

    def moved(query: Any) -> float:
        return max(
            float(np.linalg.norm(query(data) - query(worlds.without_unit(data, unit))))
            for unit in data.unit_ids
        )

    assert moved(lambda d: clipped_sum(spec, d, frame, weights, "a", coins)) <= bound
    assert moved(defective) > 2 * bound


# --- what a site reads ---


def _weights(spec: RunSpec, offsets: Vector | None) -> bytes:
    phi = 0.3 * np.random.default_rng(2).normal(size=shared_layout(spec).size)
    own = {} if offsets is None else {OFFSETS: offsets.astype(np.float32)}
    return pack_weights(spec, 0, phi, phi, **own)


@pytest.mark.parametrize(
    "offsets",
    [None, np.zeros((1, 4)), np.zeros((2, 3)), np.zeros(8), np.array([[0.0] * 4, [np.nan] * 4])],
)
def test_offsets_are_judged_whole_before_any_record_is_used(
    offsets: Vector | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of others: which rows are wrong must not matter to anybody."""
    spec = spec_of()
    inputs, _, _ = start(spec)
    inputs["weights"] = _weights(spec, offsets)
    monkeypatch.setattr(local_steps, "clipped_sum", lambda *_, **__: pytest.fail("was used"))
    with pytest.raises(tensors.TensorFileError, match="offsets"):
        update_of(spec, 1, SITES[0].data, inputs, seeded(0))


def test_layouts_of_a_trained_code() -> None:
    spec, plain = spec_of(), worlds.spec(privacy={"n_max": 80})
    assert posted_layout(spec).blocks[-1] == ("code.weight", (4, 1))
    assert shared_layout(spec) == posted_layout(plain) == shared_layout(plain)
    assert expectation(spec, 1).length == expectation(plain, 1).length + 4
    assert expectation(spec, 1).layout != expectation(plain, 1).layout
    assert expectation(spec, 0) == replace(
        expectation(plain, 0), norm_limit=expectation(spec, 0).norm_limit
    )


def test_the_code_has_a_clip_norm_only_where_it_is_trained() -> None:
    spec = spec_of(block_clip_norms={"code": 3.0}, clip_norm=4.0, classifier_clip_norm=12.0)
    assert sensitivity(spec, 1) == 13.0
    with pytest.raises(ValidationError, match=r"block_clip_norms\.code.*codes 'sketch'"):
        worlds.spec(privacy={"block_clip_norms": {"code": 1.0}})


# --- the server ---


@pytest.fixture(scope="module")
def run() -> Simulated:
    return simulate(spec_of(sample_rate=1.0), SITES, noise=seeded(0), secret=worlds.SECRET)


def job_of(spec: RunSpec, last: Aggregated, number: int, bodies: dict[str, bytes]) -> Any:
    objects = {sha256_of(b): b for b in (last.frame, last.weights, last.optimiser)}
    objects |= {sha256_of(body): body for body in bodies.values()}
    job = AggregateJob(
        job_id="j", lease_token="t", lease_s=1, run_id="run-1", round_number=number,
        kind=spec.kind(number), spec=spec, frame=sha256_of(last.frame),
        weights=sha256_of(last.weights), optimiser=sha256_of(last.optimiser),
        updates=tuple(
            AggregateInput(client_id=name, client=name, digest=sha256_of(body))
            for name, body in bodies.items()
        ),
    )  # fmt: skip
    return aggregate(job, objects.__getitem__)


@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_offsets_move_by_the_servers_rule_and_stay_where_nobody_answered(kind: str) -> None:
    spec = worlds.spec(
        model={"codes": "trained"}, privacy={"n_max": 80, "local_steps": 2},
        optimiser={"kind": kind, "learning_rate": 0.05},
    )  # fmt: skip
    run = simulate(spec, SITES, noise=seeded(0), secret=worlds.SECRET)
    frame = Frame.from_bytes(run.rounds[0].frame)
    first, second = np.zeros(4), np.zeros(4)
    value, average, answered = np.zeros(4), np.zeros(4), 0
    last = run.rounds[0]
    for number, who in ((1, "ab"), (2, "b"), (3, "abc")):
        inputs = {"frame": last.frame, "weights": last.weights}
        bodies = {
            site.name: release(
                spec, number, 1, site.name, site.data, inputs,
                secret=worlds.SECRET, noise=seeded(number),
            ).update
            for site in SITES if site.name in who
        }  # fmt: skip
        for body in bodies.values():
            check_update(body, expectation(spec, number))
        before, last = content(last.optimiser), job_of(spec, last, number, bodies)
        if "a" in who:
            answered += 1
            posted = content(bodies["a"])[TENSOR][posted_layout(spec).size - 4 :][:4]
            gradient = posted.astype(np.float64) / (0.5 * frame.sizes[0] * 2)
            value, first, second = server_step(spec, answered, value, gradient, first, second)
        decay = min(0.9, number / (number + 1.0))
        average = decay * average + (1 - decay) * value
        state, weights = content(last.optimiser), content(last.weights)
        np.testing.assert_allclose(state["offsets"][0], value, rtol=1e-12)
        np.testing.assert_array_equal(weights[OFFSETS], state["offsets"].astype(np.float32))
        np.testing.assert_allclose(weights[AVERAGE][0], average, rtol=1e-6)
        assert state["offset_steps"][0] == answered
        for place, name in enumerate("abc"):
            same = np.array_equal(state["offsets"][place], before["offsets"][place])
            assert same == (name not in who)
    assert state["offset_steps"].tolist() == [2, 3, 1]


def test_a_sketch_code_run_has_no_offsets() -> None:
    spec = worlds.spec(privacy={"n_max": 80, "rounds": 1})
    made = simulate(spec, SITES, noise=seeded(0), secret=worlds.SECRET).rounds[-1]
    shift = {"label_shift_sums", "label_shift_noise", "label_shift_rounds"}
    assert set(content(made.weights)) == {"phi", "average", "label_shift"}
    assert set(content(made.optimiser)) == {"phi", "first", "second"} | shift
    assert Offsets.start(spec, 3) is None


def test_two_sketch_steps_and_trained_codes() -> None:
    spec = worlds.spec(
        model={"codes": "trained"}, privacy={"n_max": 80, "rounds": 1, "sketch_steps": 2},
        noise=worlds.spec().noise.model_copy(update={"spread_multiplier": 1.0}),
    )  # fmt: skip
    made = simulate(spec, SITES, noise=seeded(0), secret=worlds.SECRET)
    assert content(made.rounds[1].weights)[OFFSETS].tolist() == [[0.0] * 4] * 3
    assert content(made.rounds[2].weights)[OFFSETS].any()


def test_noise_in_the_sum_over_sites_has_no_codes_of_single_sites() -> None:
    with pytest.raises(ValueError, match=r"model\.codes"):
        simulate(spec_of(), SITES, noise=seeded(0), noise_mode="aggregated")


# --- sampling ---


def test_mixtures_blend_code_and_offset_with_the_same_weights(run: Simulated) -> None:
    generator = run.generator
    assert np.abs(generator.offsets).min() > 0
    blend = generator.network_code({"a": 0.3, "c": 0.7})
    codes = generator.frame.codes + generator.offsets
    np.testing.assert_allclose(blend, 0.3 * codes[0] + 0.7 * codes[2])
    assert not generator.network_code("neutral").any()
    np.testing.assert_array_equal(generator.code({"b": 1.0}), generator.frame.codes[1])


def test_only_the_network_sees_the_offset(run: Simulated) -> None:
    """Neutral rows do not change with offsets, a client's do; the class means stay the frame's."""
    generator = run.generator
    moved = replace(generator, offsets=generator.offsets + 1.0)

    def rows(made: Generator, mixture: Any) -> Vector:
        request = SynthesisRequest.model_validate({"run": "r", "n": 50, "mixture": mixture})
        return np.asarray(made.sample(request, seed=1).x)

    np.testing.assert_array_equal(rows(moved, "neutral"), rows(generator, "neutral"))
    assert not np.array_equal(rows(moved, {"a": 1.0}), rows(generator, {"a": 1.0}))
    untrained = {name: np.zeros_like(value) for name, value in generator.weights.items()}
    flat, other = (replace(made, weights=untrained) for made in (generator, moved))
    np.testing.assert_array_equal(rows(flat, {"a": 1.0}), rows(other, {"a": 1.0}))


# --- joining ---


def test_joiners_get_offsets_by_a_map_of_what_founders_released(run: Simulated) -> None:
    spec, last = run.generator.spec, run.rounds[-1]
    states = [content(last.weights)]
    for number, name in ((4, "d"), (5, "e")):
        body = release(
            spec, number, 1, name, worlds.clusters(80, seed=number, shift=0.1 * number), {},
            secret=worlds.SECRET, noise=seeded(number),
        ).update  # fmt: skip
        last = job_of(spec, last, number, {name: body})
        states.append(content(last.weights))
    before, one, two = states
    frame = Frame.from_bytes(last.frame)
    for name in (OFFSETS, AVERAGE):
        np.testing.assert_array_equal(two[name][:4], one[name])
        np.testing.assert_array_equal(one[name][:3], before[name])
        # The second joiner's map is that of the three founders, too.
        known = before[name].astype(np.float64)
        made = predicted_offsets(frame.codes[:3], known, frame.codes[3:])
        np.testing.assert_allclose(two[name][3:], made, rtol=1e-4, atol=1e-5)
    for name in ("phi", "average"):
        np.testing.assert_array_equal(two[name], before[name])
    generator = Generator.load(last.frame, last.weights, spec)
    assert generator.network_code({"e": 1.0}).any()
    assert generator.clients == ("a", "b", "c", "d", "e")


def test_the_map_from_codes_to_offsets() -> None:
    """Linear, shrunk, without an intercept, and never longer than what it was fitted to."""
    draw = np.random.default_rng(0)
    matrix, codes = draw.normal(size=(4, 4)), draw.normal(size=(300, 4))
    offsets = codes @ matrix
    np.testing.assert_allclose(predicted_offsets(codes, offsets, codes), offsets, atol=0.2)
    np.testing.assert_array_equal(predicted_offsets(codes, offsets, np.zeros((1, 4))), 0.0)
    one = predicted_offsets(codes[:1], offsets[:1], codes[:1])
    np.testing.assert_allclose(one, 0.5 * offsets[:1])
    far = predicted_offsets(codes, offsets, 1e6 * codes[:2])
    longest = np.linalg.norm(offsets, axis=1).max()
    np.testing.assert_allclose(np.linalg.norm(far, axis=1), longest)
    assert predicted_offsets(codes[:0], offsets[:0], codes[:2]).tolist() == [[0.0] * 4] * 2
    assert predicted_offsets(np.zeros((2, 4)), offsets[:2], codes[:2]).tolist() == [[0.0] * 4] * 2


def test_founders_that_never_answered_teach_the_map_nothing() -> None:
    """A client without a trained offset has 0, which is not what training would have found."""
    spec = spec_of(rounds=1)
    run = simulate(spec, SITES, noise=seeded(0), secret=worlds.SECRET)
    first = run.rounds[0]
    inputs = {"frame": first.frame, "weights": first.weights}
    bodies = {
        site.name: release(
            spec, 1, 1, site.name, site.data, inputs, secret=worlds.SECRET, noise=seeded(9)
        ).update
        for site in SITES[:2]
    }
    trained = job_of(spec, first, 1, bodies)
    joining = release(
        spec, 2, 1, "d", worlds.clusters(80, seed=5), {}, secret=worlds.SECRET, noise=seeded(4)
    ).update
    last = job_of(spec, trained, 2, {"d": joining})
    frame, offsets = Frame.from_bytes(last.frame), content(last.weights)[OFFSETS]
    assert not offsets[2].any()
    made = predicted_offsets(frame.codes[:2], offsets[:2].astype(np.float64), frame.codes[3:])
    np.testing.assert_allclose(offsets[3:], made, rtol=1e-4, atol=1e-5)


def test_clip_rule_knows_the_code() -> None:
    rule = clip_rule(spec_of(block_clip_norms={"code": 0.5}).plan.privacy)
    assert rule.part("code") == "code"
    assert clip_rule(spec_of().plan.privacy).part("code") == "joint"
