"""The server's free terms: right gradients, from releases alone, doing what they are for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from core.data import EmbeddingDataset
from core.federation.plan import Noise, Plan, RunSpec
from core.federation.regulariser import RegulariserPlan
from core.models import generator
from core.models.architecture import Form, Prior, architecture_of, group_of
from core.models.build import build
from core.models.features import fourier_features, frequencies
from core.models.frame import Frame
from core.models.layout import sketch_layout, train_layout
from core.models.mmd import released_mmd
from core.models.public import Purpose, stream
from core.privacy.mechanism import clip_rows
from core.privacy.noise import seeded
from core.simulation import Simulated, SimulatedSite, simulate
from core.synthesis.request import SynthesisRequest
from core.training import free_mmd
from core.training.free_terms import code_pairs, free_gradient, lipschitz_excess, lipschitz_ratios
from core.training.sketch import clipped_sketch
from tests.core import worlds
from tests.core.test_neighbours import Transcript, gradient_rows, movement

Vector = NDArray[np.float64]
FORMS: tuple[Form, ...] = ("film", "lowrank", "full")
PRIORS: tuple[Prior, ...] = ("class", "standard")
QUIET = Noise(sketch_multiplier=1e-6, train_multiplier=1.0)
FEATURES = {"feature_weight": 1.0, "feature_pairs": 16}


def spec_of(
    noise: Noise | None = None,
    *,
    sketch: dict[str, Any] | None = None,
    regulariser: dict[str, Any] | None = None,
    **changes: Any,
) -> RunSpec:
    """A small run that releases features; ``changes`` as in ``worlds.spec``."""
    spec = worlds.spec(noise=noise, **changes)
    plan = spec.plan.model_dump() | {
        "sketch": FEATURES | (sketch or {}),
        "regulariser": regulariser or {},
    }
    return spec.model_copy(update={"plan": Plan.model_validate(plan)})


def two_lumps(n: int, *, seed: int, shift: float = 0.0) -> EmbeddingDataset:
    """Every class lies in two lumps, far apart along one direction: no Gaussian is like that."""
    draw = np.random.default_rng(seed)
    data = worlds.clusters(n, seed=seed, shift=shift, spread=0.15)
    x = data.x.astype(np.float64)
    x[:, 0] += np.where(draw.random(n) < 0.5, 1.0, -1.0)
    return EmbeddingDataset.from_arrays(x, data.y)


def frame_from(spec: RunSpec, *sites: EmbeddingDataset, seed: int = 0) -> Frame:
    """The frame of noised sketches, rounded as on the wire."""
    draw, names = np.random.default_rng(seed), [f"s{i}" for i in range(len(sites))]
    std = spec.noise.sketch_multiplier * spec.plan.sketch.bound
    sketches = [
        clipped_sketch(spec, site) + std * draw.normal(size=sketch_layout(spec).size)
        for site in sites
    ]
    return Frame.from_bytes(build(spec, sketches, names, names).to_bytes(spec.digest))


def sites_of(count: int = 3, n: int = 300) -> list[EmbeddingDataset]:
    return [two_lumps(n, seed=s, shift=0.1 * s) for s in range(count)]


def some_weights(spec: RunSpec, scale: float = 0.3) -> Vector:
    size = train_layout(spec).size
    return generator.initial_weights(spec) + scale * np.random.default_rng(1).normal(size=size)


# --- the objectives once more, slowly and in numpy ---


def slow_gap(rows: Vector, target: Vector) -> float:
    """Every pair of different rows, one by one."""
    n = len(rows)
    pairs = sum(float(rows[i] @ rows[j]) for i in range(n) for j in range(n) if i != j)
    cross = float(rows.mean(axis=0) @ target)
    return pairs / (n * (n - 1)) - 2.0 * cross + float(target @ target)


def slow_excess(gap: float, noise: float) -> float:
    """The integral over the gap of max(0, 1 - noise / gap)."""
    return gap - noise - noise * float(np.log(gap / noise)) if gap > noise else 0.0


def slow_mmd(spec: RunSpec, frame: Frame, phi: Vector, round_number: int) -> float:
    """The MMD term through the sampler's own generator, a row at a time."""
    draws = free_mmd.Draws.make(spec, frame, stream(spec, Purpose.MMD, round_number))
    network, dim = architecture_of(spec), spec.space.dim
    weights, half = train_layout(spec).split(phi), spec.plan.regulariser.mmd_rows
    owner = np.concatenate([np.full(s.end - s.first, s.code) for s in draws.spans])
    thetas = [generator.generate(network, weights, code) for code in draws.codes]
    ratio = (spec.plan.sketch.feature_weight / spec.plan.sketch.mean_weight) ** 2
    total = 0.0
    for label in range(len(spec.space.classes)):
        rows = []
        for row, code_index in enumerate(owner):
            theta, code = thetas[code_index], draws.codes[code_index]
            z = theta.prior_mean[label] + np.exp(theta.prior_log_std[label]) * draws.latent[row]
            x = frame.base_output(code)[label] + frame.scale_under(code) * draws.isotropic[row]
            x = x + draws.along[row] @ frame.factors_under(code)
            x = x + frame.colour(generator.decode(theta, z[None], np.array([label])))[0]
            rows.append(x / np.linalg.norm(x))
        directions = np.array(rows)
        features = fourier_features(directions, frequencies(spec))
        inside = directions @ frame.basis.T
        mean = frame.basis @ frame.base[label] / np.sqrt(dim)
        noise = frame.target_variance[label] * features.shape[1]
        mean_noise = frame.target_variance[label] * ratio * len(mean)
        share = frame.class_probs[label] / frame.class_probs.sum()
        for part in (slice(0, half), slice(half, None)):
            total += 0.5 * share * (
                slow_excess(slow_gap(features[part], frame.targets[label]), noise)
                + slow_excess(slow_gap(inside[part], mean), mean_noise)
            )  # fmt: skip
    return total


def slow_lipschitz(spec: RunSpec, frame: Frame, phi: Vector, round_number: int) -> float:
    network, weights = architecture_of(spec), train_layout(spec).split(phi)

    def made(code: Vector) -> Vector:
        values = code
        for layer in range(len(network.trunk)):
            weight, bias = weights[f"trunk.{layer}.weight"], weights[f"trunk.{layer}.bias"]
            values = generator.activate(network.activation, weight @ values + bias)
        parts = []
        for name, block in weights.items():
            if group_of(name) == "heads" and name.endswith(".weight"):
                bias = weights.get(name.removesuffix("weight") + "bias", np.zeros(1))
                parts.append(block @ values + bias)
        return np.concatenate(parts)

    pairs = code_pairs(frame.codes, stream(spec, Purpose.LIPSCHITZ, round_number))
    limit, squares = spec.plan.regulariser.lipschitz_limit, []
    for one, other in pairs:
        ratio = np.linalg.norm(made(one) - made(other)) / np.linalg.norm(one - other)
        squares.append(max(0.0, float(ratio) - limit) ** 2)
    return float(np.mean(squares))


Slow = Callable[[RunSpec, Frame, Vector, int], float]
TERMS: dict[str, tuple[dict[str, Any], Slow]] = {
    "mmd": ({"mmd_weight": 1.0, "mmd_rows": 6}, slow_mmd),
    "lipschitz": ({"lipschitz_weight": 1.0, "lipschitz_limit": 0.3}, slow_lipschitz),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_those_of_the_slow_objective(term: str, form: Form, prior: Prior) -> None:
    regulariser, slow = TERMS[term]
    model = {"form": form, "prior": prior, "conditioning": "embedding", "trunk_layers": 2}
    noise = Noise(sketch_multiplier=0.5, train_multiplier=1.0)
    spec = spec_of(noise, model=model, regulariser=regulariser)
    frame, phi, draw = frame_from(spec, *sites_of()), some_weights(spec), np.random.default_rng(0)
    assert slow(spec, frame, phi, 2) > 0.0
    gradient = free_gradient(spec, frame, phi, 2)
    step = 1e-6
    # Along each block by itself, so that no block hides behind another.
    for name, part in train_layout(spec).split(np.arange(phi.size)).items():
        direction = np.zeros(phi.size)
        direction[part.astype(int).ravel()] = draw.normal(size=part.size)
        up, down = (slow(spec, frame, phi + sign * step * direction, 2) for sign in (1, -1))
        slope = (up - down) / (2 * step)
        assert gradient @ direction == pytest.approx(slope, rel=2e-5, abs=1e-8), name


def test_terms_touch_what_they_are_about_and_add_up() -> None:
    terms = {name: regulariser for name, (regulariser, _) in TERMS.items()}
    both = spec_of(regulariser=terms["mmd"] | terms["lipschitz"], noise=QUIET)
    frame, phi = frame_from(both, *sites_of()), some_weights(both)
    apart = [
        free_gradient(spec_of(regulariser=r, noise=QUIET), frame, phi, 1) for r in terms.values()
    ]
    np.testing.assert_allclose(
        free_gradient(both, frame, phi, 1), sum(apart), rtol=1e-12, atol=1e-15
    )
    groups = []
    for gradient in apart:
        parts = train_layout(both).split(gradient)
        groups.append({group_of(name) for name, part in parts.items() if part.any()})
    assert groups == [{"trunk", "heads", "prior", "decoder"}, {"trunk", "heads"}]
    half = spec_of(regulariser=terms["mmd"] | {"mmd_weight": 0.5}, noise=QUIET)
    np.testing.assert_allclose(free_gradient(half, frame, phi, 1), 0.5 * apart[0], rtol=1e-12)
    assert not free_gradient(spec_of(), frame, phi, 1).any()


# --- post-processing of releases, the same at every replay ---


def test_nothing_but_releases_goes_in() -> None:
    """Sites whose records differ but who released the same: the terms cannot tell."""
    assert list(inspect.signature(free_gradient).parameters) == [
        "spec", "frame", "phi", "round_number",
    ]  # fmt: skip
    spec = spec_of(regulariser={"mmd_weight": 1.0, "lipschitz_weight": 1.0, "lipschitz_limit": 0.1})
    phi, released = some_weights(spec), {}
    for seed in (0, 1):
        data = [two_lumps(200 + seed, seed=10 * seed + s) for s in range(2)]
        size = sketch_layout(spec).size
        wanted = 100.0 * np.random.default_rng(7).random(size, np.float32)
        # The noise that brings either data to the very same release.
        noise = [wanted - clipped_sketch(spec, site) for site in data]
        sketches = [
            np.asarray(clipped_sketch(spec, d) + n, np.float32)  # as on the wire
            for d, n in zip(data, noise, strict=True)
        ]
        frame = Frame.from_bytes(build(spec, sketches, list("ab"), list("ab")).to_bytes("s"))
        released[seed] = free_gradient(spec, frame, phi, 1)
    assert released[0].any()
    np.testing.assert_array_equal(released[0], released[1])


def test_a_replay_gives_the_same_bytes_and_rounds_differ() -> None:
    regulariser = {"mmd_weight": 1.0, "lipschitz_weight": 1.0, "lipschitz_limit": 0.1}
    spec = spec_of(regulariser=regulariser, noise=QUIET)
    frame, phi = frame_from(spec, *sites_of()), some_weights(spec)
    first = free_gradient(spec, frame, phi, 1)
    np.random.default_rng(5).normal(size=3)
    torch.manual_seed(123)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert free_gradient(spec, frame, phi, 1).tobytes() == first.tobytes()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert free_gradient(spec, frame, phi, 2).tobytes() != first.tobytes()


def test_a_replayed_run_gives_the_same_files() -> None:
    spec = spec_of(regulariser={"mmd_weight": 1.0, "lipschitz_weight": 1.0})
    runs = [trained(spec, sites_of(2)) for _ in range(2)]
    assert runs[0].rounds[-1] == runs[1].rounds[-1]
    plain = trained(spec_of(), sites_of(2))
    assert plain.rounds[-1].optimiser != runs[0].rounds[-1].optimiser
    assert plain.events == runs[0].events  # free


@pytest.mark.parametrize("scale", [1e100, 1e200])
def test_an_iterate_that_noise_blew_up_gives_finite_gradients(scale: float) -> None:
    spec = spec_of(regulariser={"mmd_weight": 1.0, "lipschitz_weight": 1.0}, noise=QUIET)
    frame = frame_from(spec, *sites_of())
    assert np.isfinite(free_gradient(spec, frame, some_weights(spec, scale), 1)).all()


def test_a_single_client_has_no_pairs_of_codes() -> None:
    spec = spec_of(regulariser={"lipschitz_weight": 1.0, "mmd_weight": 1.0}, noise=QUIET)
    frame = replace(frame_from(spec, two_lumps(300, seed=0)), codes=np.zeros((1, 4)))
    assert len(code_pairs(frame.codes, np.random.default_rng(0))) == 0
    gradient = free_gradient(spec, frame, some_weights(spec), 1)
    assert np.isfinite(gradient).all()
    assert gradient.any()


def test_pairs_lie_between_released_codes_and_the_neutral_one() -> None:
    codes = np.random.default_rng(0).normal(size=(3, 4))
    pairs = code_pairs(codes, np.random.default_rng(1))
    corners = np.concatenate([np.zeros((1, 4)), codes]).T
    for point in pairs.reshape(-1, 4):
        # Four points of four dimensions are affinely independent: the weights are unique.
        shares = np.linalg.lstsq(np.vstack([corners, np.ones(4)]), np.append(point, 1), rcond=None)
        assert shares[0].min() > -1e-9
        assert np.allclose(corners @ shares[0], point)
    assert (np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1) > 1e-6).all()


# --- what noise explains is not fitted ---


def test_the_slope_of_a_gap_is_its_share_of_signal() -> None:
    for gap, noise, share in [(3.0, 1.0, 2 / 3), (1.0, 1.0, 0.0), (0.5, 1.0, 0.0), (2.0, 0.0, 1.0)]:
        value = torch.tensor(gap, dtype=torch.float64, requires_grad=True)
        free_mmd.beyond_noise(value, noise).backward()
        assert float(value.grad) == pytest.approx(share, abs=1e-12)


def test_gaps_are_unbiased() -> None:
    draw = np.random.default_rng(0)
    target, rows = torch.from_numpy(draw.normal(size=5)), draw.normal(1.0, 1.0, (4_000, 4, 5))
    values = [float(free_mmd.gap(torch.from_numpy(some), target)) for some in rows]
    truth = float((1.0 - target).square().sum())
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / np.sqrt(len(values))


def test_targets_of_noise_alone_pull_hardly_at_all() -> None:
    """The generator is right already; a target's noise, taken at its word, would move it."""
    spec = spec_of(QUIET, regulariser={"mmd_weight": 1.0, "mmd_rows": 256})
    quiet, phi = frame_from(spec, worlds.clusters(2_000), seed=1), some_weights(spec, 0.05)
    noise = 0.1 * np.random.default_rng(2).normal(size=quiet.targets.shape)
    fooled = replace(quiet, targets=quiet.targets + noise)
    frame = replace(fooled, target_variance=np.full(3, 0.1**2))
    pulls = [np.linalg.norm(free_gradient(spec, f, phi, 1)) for f in (frame, fooled)]
    assert pulls[0] < 0.2 * pulls[1]


# --- they do what they are for ---


def trained(spec: RunSpec, sites: list[EmbeddingDataset]) -> Simulated:
    named = [SimulatedSite(name, data) for name, data in zip("abc", sites, strict=False)]
    return simulate(spec, named, noise=seeded(0), secret=worlds.SECRET)


def test_mmd_brings_a_run_nearer_to_its_released_targets() -> None:
    """Two lumps a class, that the frame's one Gaussian cannot show; the decoder can."""
    noise = Noise(sketch_multiplier=0.01, train_multiplier=5.0)
    found = []
    for weight in (0.0, 10.0):
        spec = spec_of(
            noise,
            privacy={"rounds": 40},
            optimiser={"learning_rate": 0.05},
            model={"basis_rank": 12, "hidden": 16},
            regulariser={"mmd_weight": weight, "mmd_rows": 64},
        )
        done = trained(spec, sites_of(2, 400))
        request = SynthesisRequest.model_validate({"run": "r", "n": 6_000, "mixture": "neutral"})
        rows = done.generator.sample(request, seed=3)
        found.append(released_mmd(spec, done.generator.frame, rows.x, rows.y))
    assert 0.0 < found[1] < 0.6 * found[0]


@pytest.mark.parametrize("form", FORMS)
def test_the_lipschitz_term_brings_the_hypernetwork_within_its_limit(form: Form) -> None:
    limit = 0.5
    spec = spec_of(
        regulariser={"lipschitz_weight": 1.0, "lipschitz_limit": limit}, model={"form": form}
    )
    frame, phi = frame_from(spec, *sites_of()), some_weights(spec, 1.0)

    def worst_ratio(at: Vector) -> float:
        parts = train_layout(spec).split(at)
        weights = {name: torch.from_numpy(np.array(part)) for name, part in parts.items()}
        pairs = code_pairs(frame.codes, np.random.default_rng(11))  # not those of any round
        return float(lipschitz_ratios(architecture_of(spec), weights, pairs).max())

    assert worst_ratio(phi) > 2 * limit
    for number in range(1, 301):
        phi = phi - 0.1 * free_gradient(spec, frame, phi, number)
    assert worst_ratio(phi) < 1.15 * limit
    # Within the limit there is no pull at all: training is left alone.
    small = 1e-3 * phi
    assert worst_ratio(small) < limit
    assert not free_gradient(spec, frame, small, 1).any()
    weights = {n: torch.from_numpy(np.array(p)) for n, p in train_layout(spec).split(phi).items()}
    none = np.zeros((0, 2, 4))
    assert float(lipschitz_excess(architecture_of(spec), weights, none, limit)) == 0.0


# --- the known wrong version ---


@pytest.mark.parametrize("form", FORMS)
def test_defect_mmd_against_the_raw_batch(form: Form) -> None:
    """Trap 3: targets from the batch itself, inside every record's loss, before the clip.

    Clipping a record's gradient does not help: all others' gradients contain that record, too.
    """
    regulariser = {"mmd_weight": 1.0, "mmd_rows": 8}
    spec = spec_of(
        privacy={"sample_rate": 1.0, "clip_norm": 0.1},
        model={"form": form, "code_dropout": 0.0, "classifier": "none"},
        regulariser=regulariser,
    )  # fmt: skip
    data = worlds.clusters(24, seed=3)
    y = np.where(data.y == 2, 1, data.y)
    y[0] = 2  # the only one of its class, and far from where it should be
    x = data.x.copy()
    x[0] = -x[0]
    data = EmbeddingDataset.from_arrays(x, y)
    frame = frame_from(spec, two_lumps(200, seed=0), two_lumps(200, seed=1))
    frame = replace(frame, client_ids=("a", "b"))
    weights = some_weights(spec)
    transcript = Transcript(spec, frame, [weights])

    def raw_targets(d: EmbeddingDataset) -> Frame:
        features = fourier_features(d.directions, frequencies(spec))
        held = [features[d.y == c] for c in range(3)]
        targets = np.stack([f.mean(axis=0) if len(f) else frame.targets[0] for f in held])
        present = np.array([float(len(f) > 0) for f in held])
        return replace(frame, targets=targets, target_variance=np.zeros(3), class_probs=present)

    def defective(d: EmbeddingDataset) -> Vector:
        batch = transcript.batch(d)
        shared = 100.0 * free_gradient(spec, raw_targets(d), weights, 1)
        return clip_rows(gradient_rows(batch, weights) + shared, 0.1).sum(axis=0)

    def ours(d: EmbeddingDataset) -> Vector:
        """A site's query does not know the term; the server adds the same for D and D'."""
        return transcript.query()(d) + free_gradient(spec, frame, weights, 1)

    assert 0 < movement(ours, data, data.unit[0]) <= transcript.bound
    assert movement(defective, data, data.unit[0]) > 1.5 * transcript.bound


# --- plans ---


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"regulariser": {"mmd_weight": 1.0}}, "regulariser.mmd_weight: needs released targets"),
        ({"regulariser": {"mmd_weight": -1.0}}, "mmd_weight"),
        ({"regulariser": {"mmd_rows": 1}}, "mmd_rows"),
        ({"regulariser": {"lipschitz_limit": 0.0}}, "lipschitz_limit"),
        ({"regulariser": {"lipschitz_weight": float("nan")}}, "lipschitz_weight"),
        ({"regulariser": {"surprise": 1}}, "surprise"),
    ],
)
def test_bad_terms_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Plan.model_validate(worlds.spec().plan.model_dump() | changes)


@pytest.mark.parametrize("name", ["mmd_weight", "lipschitz_weight"])
def test_terms_need_rounds_to_act_in(name: str) -> None:
    with pytest.raises(ValidationError, match=f"regulariser.{name}: acts in training rounds only"):
        spec_of(privacy={"rounds": 0}, regulariser={name: 1.0})


def test_terms_are_off_by_default_and_a_frame_without_targets_is_refused() -> None:
    assert not RegulariserPlan().active
    spec = spec_of(regulariser={"mmd_weight": 1.0}, noise=QUIET)
    frame = replace(frame_from(spec, *sites_of()), targets=np.zeros((3, 0)))
    with pytest.raises(ValueError, match="feature_weight"):
        free_gradient(spec, frame, some_weights(spec), 1)
