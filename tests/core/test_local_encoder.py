"""Local encoders: trained in the joint clip, noised with the rest, kept by the client."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.federation.aggregate import aggregate, pack_weights
from core.federation.optimiser import server_step
from core.federation.plan import RunSpec
from core.federation.updates import TENSOR, check_update, expectation
from core.models.codes import OFFSETS
from core.models.frame import Frame
from core.models.generator import initial_weights
from core.models.layout import (
    NULL_COORDINATES,
    kept_layout,
    posted_layout,
    shared_layout,
    train_layout,
)
from core.privacy import accounting
from core.privacy.mechanism import sensitivity
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate
from core.storage import sha256_of
from core.synthesis.request import SynthesisRequest
from core.training import local_steps
from core.training.kept import Kept
from core.training.local import Released, release
from core.wire import tensors
from core.wire.messages import AggregateInput, AggregateJob
from tests.core import worlds
from tests.core.posted import (
    SLACK,
    Follower,
    Recorder,
    moved_between,
    parts_moved_between,
    start,
)
from tests.core.test_neighbours import FORMS, mixed_units, one_far_record

Vector = NDArray[np.float64]
SITES = [
    SimulatedSite(name, worlds.clusters(60, seed=s, shift=0.2 * s)) for s, name in enumerate("ab")
]


def spec_of(
    model: dict[str, Any] | None = None, optimiser: dict[str, Any] | None = None, **privacy: Any
) -> RunSpec:
    return worlds.spec(
        model={"encoder": "local"} | (model or {}), optimiser=optimiser,
        privacy={"n_max": 60, **privacy},
    )  # fmt: skip


def content(body: bytes) -> dict[str, Vector]:
    return {name: np.asarray(value) for name, value in tensors.unpack(body)[0].items()}


def go(
    spec: RunSpec, number: int, inputs: dict[str, bytes], kept: bytes | None = None,
    seed: int = 1, data: Any = None,
) -> Released:  # fmt: skip
    """Client a's real release."""
    return release(
        spec, number, 1, "a", SITES[0].data if data is None else data, inputs,
        secret=worlds.SECRET, noise=seeded(seed), kept=kept,
    )  # fmt: skip


def encoder_places(spec: RunSpec) -> NDArray[np.int64]:
    return train_layout(spec).places(kept_layout(spec))


# --- what is posted, what is kept ---


def test_layouts_divide_the_vector() -> None:
    spec, shared = spec_of({"codes": "trained"}), worlds.spec(privacy={"n_max": 60})
    posted, kept = posted_layout(spec), kept_layout(spec)
    assert {name.split(".")[0] for name, _ in kept.blocks} == {"encoder"}
    assert posted.size + kept.size == train_layout(spec).size
    assert not any(name.startswith("encoder") for name, _ in shared_layout(spec).blocks)
    assert kept_layout(shared).size == 0
    assert expectation(spec, 1).size == posted.size
    assert expectation(spec, 1).noise_std == expectation(shared, 1).noise_std
    both = np.concatenate([train_layout(spec).places(posted), encoder_places(spec)])
    np.testing.assert_array_equal(np.sort(both), np.arange(train_layout(spec).size))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_posted_and_the_kept_are_parts_of_one_noised_vector(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(local_steps=steps)
    inputs, frame, _ = start(spec)
    with Recorder(monkeypatch) as recorded:
        made = go(spec, 1, inputs)
    check_update(made.update, expectation(spec, 1))
    whole = np.sum([step.noised.astype(np.float64) for step in recorded.steps], axis=0)
    posted = content(made.update)[TENSOR]
    places = train_layout(spec).places(posted_layout(spec))
    np.testing.assert_array_equal(posted[:-NULL_COORDINATES], whole[places].astype(np.float32))
    np.testing.assert_array_equal(
        posted[-NULL_COORDINATES:], whole[train_layout(spec).size :].astype(np.float32)
    )
    state = Kept.read(spec, 2, "a", made.kept)
    assert state is not None
    batch = 0.5 * frame.sizes[0] * steps
    noised = whole[encoder_places(spec)].astype(np.float32).astype(np.float64)
    zeros = np.zeros(noised.size)
    begun = initial_weights(spec)[encoder_places(spec)]
    weights, first, second = server_step(spec, 1, begun, noised / batch, zeros, zeros)
    np.testing.assert_allclose(state.weights, weights)
    np.testing.assert_allclose(state.first, first)
    np.testing.assert_allclose(state.second, second)
    assert state.steps == 1


def test_the_next_round_begins_with_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    inputs, _, _ = start(spec)
    kept = go(spec, 1, inputs).kept
    state = Kept.read(spec, 2, "a", kept)
    assert state is not None
    for number in (2, 3):  # a round that was missed changes nothing
        with Recorder(monkeypatch) as recorded:
            after = Kept.read(spec, number + 1, "a", go(spec, number, inputs, kept).kept)
        used = recorded.steps[0].weights
        np.testing.assert_array_equal(used[encoder_places(spec)], state.weights)
        phi = content(inputs["weights"])["phi"]
        np.testing.assert_array_equal(used[train_layout(spec).places(shared_layout(spec))], phi)
        assert after is not None
        assert after.steps == 2
    with Recorder(monkeypatch) as recorded:
        go(spec, 2, inputs)
    begun = initial_weights(spec)[encoder_places(spec)]
    np.testing.assert_array_equal(recorded.steps[0].weights[encoder_places(spec)], begun)


def test_a_shared_encoder_keeps_nothing() -> None:
    spec = worlds.spec(privacy={"n_max": 60})
    inputs, _, _ = start(spec)
    assert go(spec, 1, inputs).kept is None
    assert go(spec_of(), 0, {}).kept is None  # a sketch trains nothing


def _damage(content: dict[str, Vector], metadata: dict[str, str], how: str) -> None:
    match how:
        case "client":
            metadata["client"] = "b"
        case "run":
            metadata["spec"] = "sha256:" + "0" * 64
        case "later":
            metadata["round"] = "2"
        case "sketch":
            metadata["round"] = "0"
        case "nan":
            content["first"][3] = np.nan
        case "short":
            content["second"] = content["second"][1:]
        case "gone":
            del content["weights"]


@pytest.mark.parametrize("how", ["client", "run", "later", "sketch", "nan", "short", "gone"])
def test_what_was_kept_is_judged_before_records_are_used(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of()
    inputs, _, _ = start(spec)
    kept = go(spec, 1, inputs).kept
    assert kept is not None
    parts, metadata = tensors.unpack(kept)
    _damage(parts, metadata, how)  # type: ignore[arg-type]
    monkeypatch.setattr(local_steps, "clipped_sum", lambda *_, **__: pytest.fail("was used"))
    with pytest.raises(tensors.TensorFileError, match="kept"):
        go(spec, 2, inputs, tensors.pack(parts, metadata))  # type: ignore[arg-type]


def test_an_absurd_denominator_leaves_a_finite_encoder() -> None:
    spec = spec_of(optimiser={"kind": "momentum", "learning_rate": 1e3})
    inputs, frame, _ = start(spec)
    tiny = replace(frame, sizes=np.full(2, 1e-37)).to_bytes(spec.digest)
    kept = None
    for number in (1, 2, 3):
        kept = go(spec, number, inputs | {"frame": tiny}, kept).kept
    state = Kept.read(spec, 4, "a", kept)
    assert state is not None
    assert np.isfinite(state.weights.astype(np.float32)).all()
    empty = replace(frame, sizes=np.zeros(2)).to_bytes(spec.digest)
    with pytest.raises(tensors.TensorFileError, match="sizes"):
        go(spec, 1, inputs | {"frame": empty})


# --- a whole run ---


def test_a_run_with_local_encoders_trained_codes_and_local_steps() -> None:
    spec = spec_of({"codes": "trained"}, local_steps=2)
    run = simulate(spec, SITES, noise=seeded(0), secret=worlds.SECRET)
    again = simulate(spec, SITES, noise=seeded(0), secret=worlds.SECRET)
    assert [made.weights for made in again.rounds] == [made.weights for made in run.rounds]
    assert again.kept == run.kept
    assert content(run.rounds[-1].weights)["phi"].size == shared_layout(spec).size
    states = [Kept.read(spec, 4, name, run.kept[name]) for name in "ab"]
    assert [state.steps for state in states if state] == [3, 3]
    assert not np.allclose(states[0].weights, states[1].weights)  # type: ignore[union-attr]
    for events in run.events.values():
        assert [event.steps for event in events] == [1, 2, 2, 2]
    request = SynthesisRequest.model_validate({"run": "r", "n": 40, "mixture": {"a": 1.0}})
    assert np.isfinite(run.generator.sample(request, seed=1).x).all()


def test_keeping_a_part_does_not_change_the_price() -> None:
    """The kept part was released to the site's own next rounds: one event for all of it."""
    local, shared = spec_of(), worlds.spec(privacy={"n_max": 60})
    assert local.events() == shared.events()
    assert sensitivity(local, 1) == sensitivity(shared, 1)
    assert accounting.epsilon(local.events(), 1e-5) == accounting.epsilon(shared.events(), 1e-5)


def test_noise_in_the_sum_over_sites_has_no_encoder_of_single_sites() -> None:
    with pytest.raises(ValueError, match=r"model\.encoder"):
        simulate(spec_of(), SITES, noise=seeded(0), noise_mode="aggregated")


# --- coupled neighbours, over rounds, through the real release ---


class Chain:
    """The rounds of a run in which client a alone answers; the server's files are those of D.

    Not ``served``: they stay as they are.
    """

    def __init__(
        self, spec: RunSpec, rounds: int, learnt: Vector | None = None, *, served: bool = True
    ) -> None:
        self.spec, self.rounds, self.served = spec, rounds, served
        self.inputs, _, _ = start(spec)
        if learnt is not None:
            self.inputs["weights"] = self._weights(learnt)
        self.published: list[dict[str, bytes]] = []

    def _weights(self, phi: Vector) -> bytes:
        own = {}
        if self.spec.plan.model.codes == "trained":
            own[OFFSETS] = np.zeros((2, self.spec.plan.model.code_dim), np.float32)
        return pack_weights(self.spec, 0, phi, phi, **own)

    def lead(self, data: Any, recorder: Recorder) -> list[bytes | None]:
        """On D, with the server's answers; returns what was kept after each round."""
        spec, inputs, kept = self.spec, dict(self.inputs), None
        phi = content(inputs["weights"])["phi"].astype(np.float64)
        zeros = np.zeros(phi.size)
        state: dict[str, Any] = {"phi": phi, "first": zeros, "second": zeros}
        if spec.plan.model.codes == "trained":
            code = np.zeros((2, spec.plan.model.code_dim))
            state |= {"offsets": code, "offset_first": code, "offset_second": code}
            state["offset_steps"] = np.zeros(2, np.int64)
            body = content(inputs["weights"])
            body["offsets_average"] = body[OFFSETS]
            _, metadata = tensors.unpack(inputs["weights"])
            inputs["weights"] = tensors.pack(body, metadata)
        optimiser = tensors.pack(state, {})
        history = []
        with recorder:
            for number in range(1, self.rounds + 1):
                self.published.append(dict(inputs))
                made = go(spec, number, inputs, kept, seed=number, data=data)
                kept = made.kept
                history.append(kept)
                if not self.served:
                    continue
                objects = {
                    sha256_of(b): b
                    for b in (made.update, inputs["frame"], inputs["weights"], optimiser)
                }
                job = AggregateJob(
                    job_id="j", lease_token="t", lease_s=1, run_id="run-1", round_number=number,
                    kind="train", spec=spec, frame=sha256_of(inputs["frame"]),
                    weights=sha256_of(inputs["weights"]), optimiser=sha256_of(optimiser),
                    updates=(
                        AggregateInput(client_id="a", client="a", digest=sha256_of(made.update)),
                    ),
                )  # fmt: skip
                after = aggregate(job, objects.__getitem__)
                inputs["weights"], optimiser = after.weights, after.optimiser
        return history

    def follow(self, data: Any, follower: Follower) -> list[bytes | None]:
        """On a neighbour, against the same files, keeping what it keeps itself."""
        kept, history = None, []
        with follower:
            for number, inputs in enumerate(self.published, 1):
                kept = go(self.spec, number, inputs, kept, seed=1000 + number, data=data).kept
                history.append(kept)
        return history


@pytest.mark.parametrize("rounds", [1, 5, 50])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("more", [{}, {"codes": "trained", "steps": 2}])
def test_queries_stay_within_their_sensitivity_round_after_round(
    form: str, rounds: int, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the same noised vectors, posted and kept, a neighbour's kept state is the same bytes
    and each query moves by at most S: nothing else is carried from round to round.
    """
    spec = spec_of(
        {"form": form, "codes": more.get("codes", "sketch")},
        {"learning_rate": 0.1},
        rounds=50, sample_rate=0.9, clip_norm=0.3, n_max=30, local_steps=more.get("steps", 1),
    )  # fmt: skip
    data, bound = mixed_units(rounds), sensitivity(spec, 1) * SLACK
    chain, recorded = Chain(spec, rounds), Recorder(monkeypatch)
    kept = chain.lead(data, recorded)
    units = data.unit_ids if rounds < 50 else data.unit_ids[:3]
    worst = 0.0
    for unit in units:
        followed = Follower(monkeypatch, recorded)
        assert chain.follow(worlds.without_unit(data, unit), followed) == kept
        distances = moved_between(recorded, followed)
        assert len(distances) == rounds * more.get("steps", 1)
        worst = max(worst, *distances)
        assert max(parts_moved_between(spec, recorded, followed)) <= SLACK
    assert 0 < worst <= bound


@pytest.mark.parametrize("rounds", [2, 5, 50])
@pytest.mark.parametrize("form", FORMS)
def test_defect_encoder_kept_without_noise(
    form: str, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 1, clipped but not noised: everybody's next gradients depend on the protected record."""
    data = one_far_record()
    fewer = worlds.without_unit(data, data.unit[0])

    def moved(seed: int, rate: float, *, noised: bool) -> float:
        """By how much the queries of D and D' differ, in units of S."""
        spec = spec_of(
            {"form": form, "code_dropout": 0.0, "classifier": "none"},
            {"kind": "momentum", "learning_rate": rate},
            rounds=50, sample_rate=1.0, clip_norm=0.1, n_max=30,
        )  # fmt: skip
        learnt = 0.5 * np.random.default_rng(seed).normal(size=shared_layout(spec).size)
        bare = None if noised else encoder_places(spec)
        chain, recorded = Chain(spec, rounds, learnt, served=False), Recorder(monkeypatch, bare)
        chain.lead(data, recorded)
        followed = Follower(monkeypatch, recorded, bare)
        chain.follow(fewer, followed)
        return max(moved_between(recorded, followed)) / sensitivity(spec, 1)

    tried = [(seed, rate) for seed in range(1, 9) for rate in (10.0, 100.0, 1000.0)]
    wrong = next((case for case in tried if moved(*case, noised=False) > 2.0), None)
    assert wrong is not None
    assert 0 < moved(*wrong, noised=True) <= SLACK


def test_frames_carry_the_sizes_that_encoders_move_by() -> None:
    run = simulate(spec_of(), SITES, noise=seeded(0), secret=worlds.SECRET)
    assert (Frame.from_bytes(run.rounds[0].frame).sizes > 0).all()
