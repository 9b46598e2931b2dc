"""The mode ``paper``: what it does, that it protects no record, and that nobody serves it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from core.data import EmbeddingDataset
from core.errors import PlanRefused
from core.evaluation.baselines.common import Sampler, Terms, spent
from core.evaluation.baselines.methods import METHODS
from core.evaluation.baselines.paper import PaperSettings, paper_mode
from core.federation.plan import NO_GUARANTEE, Plan, RunSpec
from core.federation.regulariser import RegulariserPlan
from core.federation.updates import expectation
from core.models.architecture import architecture_of
from core.models.hypernetwork import HyperCVAE
from core.models.layout import kept_layout, shared_layout, train_layout
from core.paper import PaperRun, simulate_paper
from core.privacy.coins import CoinStream
from core.privacy.mechanism import sensitivity
from core.privacy.noise import csprng, seeded
from core.receipts.opening import SEEDED, ModelFacts, opening
from core.receipts.receipt import NOT_PRIVATE, Model, Receipt
from core.simulation import SimulatedSite, simulate
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from core.training.gradients import Batch, clipped_sum
from core.training.local import execute, release
from core.training.paper import (
    LocalTraining,
    PrivateState,
    shared_bound,
    site_round,
    trained_state,
)
from core.wire import tensors
from core.wire.messages import WorkOrder
from tests.core import worlds
from tests.core.test_neighbours import FORMS, frame_for, one_far_record

Vector = NDArray[np.float64]
TOLERANCE = 1 + 1e-6
MODEL = {"codes": "trained", "encoder": "local", "classifier": "none"}
SITES = [
    SimulatedSite(name, worlds.clusters(60, seed=s, shift=0.2 * s)) for s, name in enumerate("ab")
]


def spec_of(*, mode: str = "paper", model: dict[str, Any] | None = None, **more: Any) -> RunSpec:
    purpose = more.pop("purpose", "simulation")
    privacy = {"mode": mode, "n_max": 60, "clip_norm": 0.1, **more}
    return worlds.spec(privacy=privacy, model=MODEL | (model or {}), purpose=purpose)


def run_of(spec: RunSpec, seed: int = 0, **more: Any) -> PaperRun:
    return simulate_paper(spec, SITES, noise=seeded(seed), secret=worlds.SECRET, **more)


def request(mixture: Any, n: int = 30) -> SynthesisRequest:
    return SynthesisRequest.model_validate({"run": "r", "n": n, "mixture": mixture})


def learnt(spec: RunSpec, seed: int) -> Vector:
    """Shared weights of a run that has learnt something: under initial ones no code matters."""
    return 0.5 * np.random.default_rng(seed).normal(size=shared_layout(spec).size)


# --- who refuses it ---


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"purpose": "production"}, f"privacy.mode: 'paper' has {NO_GUARANTEE}"),
        ({"model": {"classifier": "linear"}}, "model.classifier = 'none'"),
        ({"model": {"codes": "sketch"}}, "model.codes = 'trained'"),
        ({"model": {"encoder": "shared"}}, "model.encoder = 'local'"),
        ({"block_clip_norms": {"encoder": 0.1}}, "privacy.block_clip_norms.encoder"),
        ({"block_clip_norms": {"code": 0.1}}, "privacy.block_clip_norms.code"),
        ({"rounds": 0}, "rounds > 0"),
        ({"local_steps": 2}, "local_steps = 1"),
        ({"validation_share": 0.1}, "makes one generator only"),
    ],
)
def test_a_plan_of_this_mode_says_what_it_is(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        spec_of(**changes)
    assert says in str(refused.value)
    assert spec_of(mode="joint").plan.privacy.caveat == ""
    assert spec_of().plan.privacy.caveat == NO_GUARANTEE


def test_a_training_round_has_no_event() -> None:
    spec = spec_of()
    assert spec.event(0) == spec_of(mode="joint").event(0)
    with pytest.raises(ValueError, match=NO_GUARANTEE):
        spec.event(1)
    with pytest.raises(ValueError, match=NO_GUARANTEE):
        spec.events()


@pytest.mark.parametrize("purpose", ["simulation", "production"])
@pytest.mark.parametrize("number", [0, 1])
def test_no_site_executes_it(purpose: str, number: int) -> None:
    """Also if somebody got a plan past its own checks."""
    joint = spec_of(mode="joint")
    expected = expectation(joint, number)
    plan = spec_of().plan.model_copy(update={"purpose": purpose})
    order = WorkOrder(
        work_id="w", run_id="run-1", client_id="a", client="a", round_number=number,
        kind="sketch" if number == 0 else "train", attempt=1, lease_token="t", lease_s=1,
        spec=joint, spec_digest=joint.digest, event=joint.event(number),
        update_layout=expected.layout, max_update_bytes=expected.max_bytes, inputs=(),
    ).model_copy(update={"spec": joint.model_copy(update={"plan": plan})})  # fmt: skip
    data = SITES[0].data
    with pytest.raises(PlanRefused, match=NO_GUARANTEE) as refused:
        execute(order, data, {}, secret=worlds.SECRET, noise=csprng())
    assert refused.value.field == "plan.privacy.mode"
    with pytest.raises(PlanRefused, match=NO_GUARANTEE):
        release(
            order.spec, number, 1, "a", data, {}, secret=worlds.SECRET, noise=seeded(0)
        )  # fmt: skip


def test_each_simulation_runs_its_own_mode() -> None:
    for mode in ("local", "aggregated"):
        with pytest.raises(ValueError, match="simulate_paper"):
            simulate(spec_of(), SITES, noise=seeded(0), noise_mode=mode)  # type: ignore[arg-type]
    spec = spec_of()
    served = spec.model_copy(
        update={"plan": spec.plan.model_copy(update={"purpose": "production"})}
    )
    for wrong in (spec_of(mode="joint"), served):
        with pytest.raises(ValueError, match=r"simulations of privacy\.mode"):
            run_of(wrong)


# --- what it makes, and what that says of itself ---


@pytest.mark.parametrize("form", FORMS)
def test_a_simulated_run_makes_rows_that_say_what_they_are(form: str) -> None:
    spec = spec_of(model={"form": form})
    run = run_of(spec)
    assert (run.private, run.caveat, run.epsilon) == (False, NO_GUARANTEE, math.inf)
    assert run.generator.caveat == NO_GUARANTEE
    _, metadata = tensors.unpack(run.weights)
    assert metadata["caveat"] == NO_GUARANTEE
    neutral = run.generator.sample(request("neutral"), seed=1)
    own = run.generator.sample(request({"a": 1.0}), seed=1)
    assert not np.array_equal(neutral.x, own.x)
    for samples in (neutral, own):
        assert samples.caveat == NO_GUARANTEE
        np.testing.assert_allclose(np.linalg.norm(samples.x, axis=1), np.sqrt(12), rtol=1e-5)
    receipt = receipt_of(run.generator)
    assert (receipt.label, receipt.caveat) == (NOT_PRIVATE, NO_GUARANTEE)
    # Files keep the label, whatever plan they are read with.
    assert Generator.load(
        run.frame, run.weights, spec_of(mode="joint", model={"form": form})
    ).caveat
    assert run_of(spec).weights == run.weights
    assert run_of(spec, seed=1).weights != run.weights


def receipt_of(generator: Generator, noise_mode: str = "csprng") -> Receipt:
    model = Model(run_id="1", run="r", round=1, plan_digest="", frame_digest="", weights_digest="")
    facts = ModelFacts(model, (), "add-or-remove-unit", noise_mode)
    asked = request("neutral")
    return opening(facts, generator, asked, 1, generator.codes(asked))


def test_a_joint_run_has_no_caveat() -> None:
    done = simulate(spec_of(mode="joint"), SITES, noise=seeded(0), secret=worlds.SECRET)
    assert done.generator.caveat == ""
    _, metadata = tensors.unpack(done.rounds[-1].weights)
    assert "caveat" not in metadata
    private, seeded_noise = receipt_of(done.generator), receipt_of(done.generator, "seeded")
    assert (private.label, private.caveat) == ("", "")
    assert (seeded_noise.label, seeded_noise.caveat) == (NOT_PRIVATE, SEEDED)


def test_the_frame_is_that_of_a_joint_run_and_codes_are_private() -> None:
    spec = spec_of()
    run = run_of(spec)
    joint = simulate(spec_of(mode="joint"), SITES, noise=seeded(0), secret=worlds.SECRET)
    np.testing.assert_array_equal(run.generator.frame.base, joint.generator.frame.base)
    np.testing.assert_array_equal(run.generator.frame.codes, joint.generator.frame.codes)
    start = PrivateState.start(spec)
    for state in run.states.values():
        assert state.offset.any()
        assert not np.allclose(state.encoder, start.encoder)
    content, _ = tensors.unpack(run.weights)
    held = np.stack([run.states[name].offset for name in "ab"])
    np.testing.assert_array_equal(np.asarray(content["offsets"]), held.astype(np.float32))


def test_free_terms_act_as_in_a_joint_run() -> None:
    spec = spec_of(model={"code_dropout": 0.0})
    asked = RegulariserPlan(lipschitz_weight=1e3, lipschitz_limit=1e-3)
    plan = Plan.model_validate(spec.plan.model_copy(update={"regulariser": asked}).model_dump())
    assert run_of(spec.model_copy(update={"plan": plan})).weights != run_of(spec).weights


class Counting:
    """Noise that is none, and remembers what it was asked for."""

    private = False

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    def normal(self, size: int, std: float) -> Vector:
        self.asked.append((size, std))
        return np.zeros(size)


@pytest.mark.parametrize(("mode", "draws"), [("local", 2), ("aggregated", 1)])
def test_noise_is_on_every_shared_block_and_on_nothing_else(mode: Any, draws: int) -> None:
    spec, noise = spec_of(block_clip_norms={"trunk": 0.05}), Counting()
    seen: list[dict[str, Vector]] = []
    simulate_paper(
        spec, SITES, noise=noise, secret=worlds.SECRET, noise_mode=mode,
        observe=lambda _, totals: seen.append(totals),
    )  # fmt: skip
    size = shared_layout(spec).size
    assert not any(n.startswith(("encoder", "code")) for n, _ in shared_layout(spec).blocks)
    bound = math.hypot(0.1, 0.05)
    assert shared_bound(spec) == pytest.approx(bound)
    rounds = spec.plan.privacy.rounds
    assert noise.asked[draws:] == [(size, pytest.approx(bound))] * (rounds * draws)
    assert len(noise.asked) == draws * (rounds + 1)
    assert [set(totals) for totals in seen] == [{"a", "b"}] * rounds
    assert all(total.shape == (size,) for totals in seen for total in totals.values())


# --- the arithmetic, against the expanded module ---


def module_of(spec: RunSpec, parts: dict[str, NDArray[np.floating]]) -> HyperCVAE:
    """With codes as inputs, [B, c]."""
    module = HyperCVAE(replace(architecture_of(spec), trains_code=False)).double()
    module.load({n: torch.tensor(part) for n, part in parts.items() if n != "code.weight"})
    return module


def batch_of(spec: RunSpec, data: EmbeddingDataset) -> Batch:
    coins = CoinStream(worlds.SECRET, "r", 1, 1)
    return Batch.draw(spec, data, frame_for(spec), "a", coins)


@pytest.mark.parametrize("form", FORMS)
def test_local_training_is_plain_adam_on_code_and_encoder(form: str) -> None:
    spec = spec_of(model={"form": form, "code_dropout": 0.5}, sample_rate=1.0)
    data, phi, start = worlds.clusters(20), learnt(spec, 1), PrivateState.start(spec)
    batch = batch_of(spec, data)
    found = trained_state(batch, phi, start, LocalTraining(steps=4, learning_rate=0.05))
    kept = kept_layout(spec)
    module = module_of(spec, shared_layout(spec).split(phi) | kept.split(start.encoder))
    offset = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([offset, *module.encoder.parameters()], lr=0.05)
    inputs = [torch.tensor(part) for part in batch.inputs(np.arange(20))]
    own = torch.tensor(1.0 - batch.code_of)[:, None]
    assert 0 < float(own.sum()) < 20
    for _ in range(4):
        adam.zero_grad()
        codes = own * (torch.tensor(batch.own) + offset)
        module(*inputs, codes).mean().backward()
        adam.step()
    blocks = {n: p.detach().numpy() for n, p in module.named_parameters() if "encoder" in n}
    np.testing.assert_allclose(found.offset, offset.detach().numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.encoder, kept.join(blocks), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
@pytest.mark.parametrize("form", FORMS)
def test_the_sum_is_clipped_over_shared_blocks_alone(form: str, clip_norm: float) -> None:
    spec = spec_of(model={"form": form}, sample_rate=1.0, clip_norm=clip_norm)
    data, phi = worlds.clusters(20), learnt(spec, 2)
    still = LocalTraining(steps=0)
    state = trained_state(batch_of(spec, data), phi, PrivateState.start(spec), LocalTraining())
    coins = CoinStream(worlds.SECRET, "r", 1, 1)
    same, ours = site_round(spec, data, frame_for(spec), phi, "a", state, coins, still)
    np.testing.assert_array_equal(same.offset, state.offset)
    batch = batch_of(spec, data)
    shared = shared_layout(spec)
    module = module_of(spec, shared.split(phi) | kept_layout(spec).split(state.encoder))
    total = np.zeros(shared.size)
    for place in range(20):
        inputs = [torch.tensor(part) for part in batch.inputs(np.array([place]))]
        code = (1 - batch.code_of[place]) * (batch.own + state.offset)
        module.zero_grad()
        module(*inputs, torch.tensor(code)[None]).sum().backward()
        grads = {n: p.grad for n, p in module.named_parameters()}
        row = torch.cat([grads[n].flatten() for n, _ in shared.blocks]).numpy()
        total += row * min(1.0, clip_norm / np.linalg.norm(row))
    assert np.linalg.norm(ours - total) <= 1e-5 * np.linalg.norm(total)


def test_an_empty_site_and_broken_weights_leave_the_state() -> None:
    spec, data = spec_of(), worlds.clusters(6)
    nobody = EmbeddingDataset.from_arrays(data.x[:0], data.y[:0])
    start, phi = PrivateState.start(spec), learnt(spec, 1)
    assert trained_state(batch_of(spec, nobody), phi, start, LocalTraining()) is start
    assert trained_state(batch_of(spec, data), 1e200 * phi, start, LocalTraining()) is start


# --- no record-level guarantee ---


def moved(
    spec: RunSpec, data: EmbeddingDataset, seed: int, training: LocalTraining, rounds: int = 6
) -> tuple[float, float]:
    """How far removing the first unit moves the posted sum, in units of S, over the rounds: (at
    most with the states that each side trained, at most with the state of one side held).

    Coupled neighbours: the same coins, frame and noise transcript, hence the same shared weights.
    """
    fewer, frame, bound = (
        worlds.without_unit(data, data.unit[0]),
        frame_for(spec),
        shared_bound(spec),
    )
    phi, draw = learnt(spec, seed), np.random.default_rng(7)
    ours = theirs = PrivateState.start(spec)
    apart, held = [], []
    for number in range(1, rounds + 1):
        coins = CoinStream(worlds.SECRET, "r", number, 1)
        ours, total = site_round(spec, data, frame, phi, "a", ours, coins, training)
        theirs, other = site_round(spec, fewer, frame, phi, "a", theirs, coins, training)
        _, given = site_round(spec, fewer, frame, phi, "a", ours, coins, LocalTraining(steps=0))
        apart.append(float(np.linalg.norm(total - other)) / bound)
        held.append(float(np.linalg.norm(total - given)) / bound)
        noised = total + bound * draw.normal(size=phi.size)
        phi = phi - 0.05 * noised / len(data.y)
    return max(apart), max(held)


def joint_moved(spec: RunSpec, data: EmbeddingDataset, seed: int, rounds: int = 6) -> float:
    """The same of the mode ``joint``: code and encoder are moved by noised sums, as released."""
    fewer, frame, bound = (
        worlds.without_unit(data, data.unit[0]),
        frame_for(spec),
        sensitivity(spec, 1),
    )
    layout, draw = train_layout(spec), np.random.default_rng(7)
    parts = shared_layout(spec).split(learnt(spec, seed))
    parts |= kept_layout(spec).split(PrivateState.start(spec).encoder)
    weights = layout.join(parts | {"code.weight": frame.code("a")[:, None]})
    worst = 0.0
    for number in range(1, rounds + 1):
        coins = CoinStream(worlds.SECRET, "r", number, 1)
        total, other = (clipped_sum(spec, d, frame, weights, "a", coins) for d in (data, fewer))
        worst = max(worst, float(np.linalg.norm(total - other)) / bound)
        noised = total + bound * draw.normal(size=weights.size)
        weights = weights - 0.05 * noised / len(data.y)
    return worst


@pytest.mark.parametrize("form", FORMS)
def test_defect_paper_mode_lets_one_record_move_the_whole_sum(form: str) -> None:
    """One of 200 records moves the posted sum by many times S, what the noise is made for."""
    model, data = {"form": form, "code_dropout": 0.0}, one_far_record(200)
    spec = spec_of(model=model, sample_rate=1.0, rounds=50)
    joint = spec_of(mode="joint", model=model, sample_rate=1.0, rounds=50)
    fast = LocalTraining(steps=5, learning_rate=0.5)
    found = [moved(spec, data, seed, fast) for seed in (1, 2, 3)]
    assert max(apart for apart, _ in found) > 5.0
    # Given one private state the sum keeps its bound: it is the state that gives the record away.
    assert all(0 < held <= TOLERANCE for _, held in found)
    assert all(0 < joint_moved(joint, data, seed) <= TOLERANCE for seed in (1, 2, 3))


def test_defect_paper_mode_breaks_its_bound_at_the_ordinary_rate_too() -> None:
    spec = spec_of(model={"form": "full", "code_dropout": 0.0}, sample_rate=1.0, rounds=50)
    found = [moved(spec, one_far_record(), seed, LocalTraining()) for seed in (1, 2, 3)]
    assert max(apart for apart, _ in found) > 1.1


# --- as a baseline ---


@pytest.mark.parametrize("mode", ["local", "aggregated"])
def test_the_baseline_is_not_private_whatever_it_was_asked_for(mode: Any) -> None:
    assert METHODS["paper"] is paper_mode
    terms = Terms(2.0, 1e-5, noise_mode=mode, secret=worlds.SECRET)
    data = [site.data for site in SITES]
    found = paper_mode(data, worlds.space(), terms, seeded(0), PaperSettings(rounds=2))
    assert isinstance(found, Sampler)
    assert (found.private, found.caveat) == (False, NO_GUARANTEE)
    assert spent(found, 1e-5) == math.inf
    assert found.events == ((), ())
    assert len(found.run.generator.clients) == 2
    x, y = found.sample(31, 4)
    assert (x.shape, x.dtype, y.dtype) == ((31, 12), np.float32, np.int64)
    np.testing.assert_array_equal(x, found.sample(31, 4)[0])
    assert not np.array_equal(x, found.sample(31, 5)[0])
    assert not np.array_equal(x, found.neutral(31, 4)[0])
    assert found.sample(0, 1)[0].shape == (0, 12)
