"""Joining after training: nothing old moves, the new client has its own means, at one sketch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import EmbeddingDataset
from core.federation.aggregate import aggregate
from core.federation.plan import MAX_JOINS, Noise, RunSpec
from core.federation.updates import check_update, expectation, read_update
from core.models.build import build
from core.models.evidence import from_sketches
from core.models.frame import Frame
from core.models.joining import ROOM, join, own_means
from core.models.layout import sketch_layout
from core.privacy.accounting import epsilon
from core.privacy.mechanism import sensitivity
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate
from core.storage import sha256_of
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from core.training.local import release
from core.training.sketch import clipped_sketch
from core.wire.messages import AggregateInput, AggregateJob
from tests.core import worlds
from tests.core.test_neighbours import TOLERANCE, awkward, worst

Vector = np.ndarray
LOW = Noise(sketch_multiplier=0.05, train_multiplier=1.0)
FLOAT32 = 6e-8 / ROOM  # what the room's tolerance lets rounding grow to


def released(spec: RunSpec, data: EmbeddingDataset, seed: int) -> Vector:
    """A site's noised sketch without its null coordinates."""
    noise = spec.noise.join_multiplier * sensitivity(spec, 0)
    draw = np.random.default_rng(seed)
    return clipped_sketch(spec, data) + noise * draw.normal(size=sketch_layout(spec).size)


def site(seed: int, n: int = 300) -> EmbeddingDataset:
    """Records whose domain differs: each site is shifted along a direction of its own."""
    data = worlds.clusters(n, seed=seed)
    shift = np.random.default_rng(1000 + seed).normal(size=12)
    return EmbeddingDataset.from_arrays(data.x + 0.8 * shift / np.linalg.norm(shift), data.y)


def names(count: int, prefix: str = "old") -> list[str]:
    return [f"{prefix}-{i}" for i in range(count)]


def published(spec: RunSpec, founders: int, seed: int = 0) -> Frame:
    """The founders' frame as it comes out of its file, in float32."""
    sketches = [released(spec, site(seed + i), seed + i) for i in range(founders)]
    frame = build(spec, sketches, names(founders), names(founders))
    return Frame.from_bytes(frame.to_bytes(spec.digest))


def joined(spec: RunSpec, frame: Frame, sketches: list[Vector]) -> Frame:
    made = join(spec, frame, sketches, names(len(sketches), "new"), names(len(sketches), "new"))
    made.require(spec)
    again = Frame.from_bytes(made.to_bytes(spec.digest))
    assert again.clients == frame.clients + tuple(names(len(sketches), "new"))
    return again


def assert_nothing_old_moved(before: Frame, after: Frame) -> None:
    old = len(before.codes)
    for name in ("base", "basis", "scale", "factors", "class_probs", "code_offset", "code_scale"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.codes[:old], before.codes)
    np.testing.assert_array_equal(after.sizes[:old], before.sizes)
    assert after.client_ids[:old] == before.client_ids
    np.testing.assert_array_equal(after.base_output(np.zeros(4)), before.base_output(np.zeros(4)))
    scale = np.abs(before.base).max() + np.abs(after.directions).max()
    for code in before.codes:
        moved = after.base_output(code) - before.base_output(code)
        assert np.abs(moved).max() <= FLOAT32 * scale * max(1.0, np.linalg.norm(code))


def share_outside(before: Vector, code: Vector) -> float:
    """Which share of a code's length lies outside the span of the codes before."""
    nearest = before.T @ np.linalg.lstsq(before.T, code, rcond=1e-6)[0]
    return float(np.linalg.norm(code - nearest) / np.linalg.norm(code))


NOISES = st.sampled_from([1e-6, 0.05, 1.0, 50.0])


@given(st.integers(0, 500), st.integers(1, 6), st.integers(1, 4), NOISES)
@settings(max_examples=60, deadline=None)
def test_nothing_old_moves_whoever_joins(
    seed: int, founders: int, joiners: int, multiplier: float
) -> None:
    spec = worlds.spec(noise=Noise(sketch_multiplier=multiplier, train_multiplier=1.0))
    frame = published(spec, founders, seed)
    sketches = [released(spec, site(700 + seed + j), j) for j in range(joiners)]
    after = joined(spec, frame, sketches)
    assert_nothing_old_moved(frame, after)
    for array in (after.codes, after.directions, after.sizes):
        assert np.isfinite(array).all()
    longest = max(np.linalg.norm(frame.codes, axis=1).max(), 2.0)
    assert np.linalg.norm(after.codes, axis=1).max() <= longest * (1 + 1e-6)


@given(st.integers(0, 500), st.integers(1, 4), NOISES)
@settings(max_examples=40, deadline=None)
def test_joiners_reproduce_their_own_shrunken_means_while_there_is_room(
    seed: int, founders: int, multiplier: float
) -> None:
    """Codes are centred: M founders use M - 1 of the 4 dimensions."""
    spec = worlds.spec(noise=Noise(sketch_multiplier=multiplier, train_multiplier=1.0))
    frame = published(spec, founders, seed)
    room = 4 - (founders - 1)
    sketches = [released(spec, site(900 + seed + j), j) for j in range(room)]
    after = joined(spec, frame, sketches)
    evidence = from_sketches(spec, sketches, spec.noise.join_multiplier)
    for index, means in enumerate(own_means(spec, frame, evidence)):
        if share_outside(after.codes[: founders + index], after.code(f"new-{index}")) < 2 * ROOM:
            continue  # by chance a code may lie as good as among those before
        made = after.base_output(after.code(f"new-{index}"))
        np.testing.assert_allclose(made, means, atol=1e-3 * np.abs(means).max())


def test_one_after_the_other_is_as_good_as_all_at_once() -> None:
    spec = worlds.spec(noise=LOW)
    frame = published(spec, 2)
    sketches = [released(spec, site(50 + j), j) for j in range(3)]
    together = joined(spec, frame, sketches)
    apart = frame
    for j, sketch in enumerate(sketches):
        apart = join(spec, apart, [sketch], [f"new-{j}"], [f"new-{j}"])
    np.testing.assert_allclose(apart.codes, together.codes, atol=1e-5)
    for name in together.clients:
        np.testing.assert_allclose(
            apart.base_output(apart.code(name)),
            together.base_output(together.code(name)),
            atol=1e-4,
        )


def test_without_room_the_code_alone_places_a_client_by_the_map_that_there_is() -> None:
    spec = worlds.spec(noise=LOW)
    frame = published(spec, 6)  # five independent codes in four dimensions
    sketch = released(spec, site(3), 77)  # the site of client old-3, seen again
    after = joined(spec, frame, [sketch])
    np.testing.assert_array_equal(after.directions, frame.directions)
    made = after.base_output(after.code("new-0"))
    twin, neutral = frame.base_output(frame.code("old-3")), frame.base
    assert np.linalg.norm(made - twin) < 0.5 * np.linalg.norm(neutral - twin)


def test_a_site_without_some_class_takes_its_common_shift_there() -> None:
    spec = worlds.spec(noise=LOW)
    frame = published(spec, 2)
    data = site(40)
    some = data.y != 2
    partial = EmbeddingDataset.from_arrays(data.x[some], data.y[some])
    after = joined(spec, frame, [released(spec, partial, 1)])
    made, full = (
        after.base_output(after.code("new-0")),
        math.sqrt(12) * np.stack([data.directions[data.y == c].mean(axis=0) for c in range(3)]),
    )
    assert np.linalg.norm(made[:2] - full[:2]) < 0.1 * np.linalg.norm(full[:2])
    # Of the absent class it knows only how the site shifts the others, which is better than not.
    assert np.linalg.norm(made[2] - full[2]) < np.linalg.norm(frame.base[2] - full[2])


def test_pure_noise_and_an_empty_site_get_the_neutral_means() -> None:
    spec = worlds.spec(noise=Noise(sketch_multiplier=50.0, train_multiplier=1.0))
    frame = published(spec, 3)
    nobody = EmbeddingDataset.from_arrays(np.zeros((0, 12)), np.zeros(0, np.int64))
    after = joined(spec, frame, [released(spec, nobody, 5)])
    made = after.base_output(after.code("new-0"))
    assert np.linalg.norm(made - frame.base) < np.linalg.norm(frame.base)
    assert after.sizes[-1] >= 1


def test_a_joiners_own_code_serves_it_better_than_the_neutral_one() -> None:
    spec = worlds.spec(noise=Noise(sketch_multiplier=1.0, train_multiplier=1.0))
    frame = published(spec, 3)
    data = site(21, n=600)
    truth = math.sqrt(12) * np.stack([data.directions[data.y == c].mean(axis=0) for c in range(3)])
    after = joined(spec, frame, [released(spec, data, 21)])
    own = np.linalg.norm(after.base_output(after.code("new-0")) - truth)
    assert own < 0.7 * np.linalg.norm(frame.base - truth)
    blend = 0.3 * after.code("old-1") + 0.7 * after.code("new-0")
    parts = 0.3 * after.base_output(after.code("old-1")) + 0.7 * after.base_output(
        after.code("new-0")
    )
    np.testing.assert_allclose(after.base_output(blend), parts, atol=1e-5)


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_an_absurd_sketch_spoils_its_own_decoder_and_nobody_elses(size: float) -> None:
    """The checks of an update find broken sites, not malicious ones: so a join must be harmless."""
    spec = worlds.spec()
    frame = published(spec, 2)
    draw = np.random.default_rng(8)
    sketches = [size * draw.normal(size=sketch_layout(spec).size) for _ in range(2)]
    after = joined(spec, frame, sketches)
    assert_nothing_old_moved(frame, after)
    assert np.abs(after.directions).max() < 1e3
    made = after.base_output(after.code("new-0"))
    assert np.linalg.norm(made, axis=1).max() <= math.sqrt(12) * 1.001


@pytest.mark.parametrize("ids", [["old-1"], ["new-0", "new-0"]])
def test_nobody_gets_a_second_code(ids: list[str]) -> None:
    spec = worlds.spec()
    frame = published(spec, 2)
    with pytest.raises(ValueError, match="second code"):
        join(spec, frame, [released(spec, site(i), i) for i in range(len(ids))], ids, ids)


# --- the round ---


def test_rounds_behind_the_last_one_are_joins_at_the_price_of_a_sketch() -> None:
    for steps, rounds in ((1, 3), (2, 0)):
        second = 2.0 if steps == 2 else None
        noise = Noise(sketch_multiplier=3.0, spread_multiplier=second, train_multiplier=1.0)
        spec = worlds.spec(privacy={"sketch_steps": steps, "rounds": rounds}, noise=noise)
        for number in (spec.last_round + 1, spec.last_round + MAX_JOINS):
            assert spec.kind(number) == "join"
            assert sensitivity(spec, number) == sensitivity(spec, 0)
            assert expectation(spec, number).layout == expectation(spec, 0).layout
            sketches = [spec.event(n) for n in range(steps)]
            assert epsilon([spec.event(number)], 1e-5) == pytest.approx(
                epsilon(sketches, 1e-5), rel=0.01
            )
        assert len(spec.events()) == spec.last_round + 1
        with pytest.raises(ValueError, match="joins"):
            spec.kind(spec.last_round + MAX_JOINS + 1)
        with pytest.raises(ValueError, match="not -1"):
            spec.kind(-1)
        assert epsilon([spec.event(spec.last_round + 1)], 1e-5) < epsilon(spec.events(), 1e-5)


def joining_update(
    spec: RunSpec, number: int, data: EmbeddingDataset, noise_seed: int = 3
) -> bytes:
    noise = seeded(noise_seed)
    return release(spec, number, 1, "new", data, {}, secret=worlds.SECRET, noise=noise).update


@pytest.mark.parametrize("multiplier", [0.5, 3.0])
def test_the_query_of_a_join_stays_within_its_sensitivity(multiplier: float) -> None:
    """It is the sketch's query: the coupled neighbours of ``tests/core/test_neighbours.py``."""
    spec = worlds.spec(noise=Noise(sketch_multiplier=multiplier, train_multiplier=1.0))
    number = spec.last_round + 1

    def query(data: EmbeddingDataset) -> Vector:
        body = joining_update(spec, number, data)
        expected = expectation(spec, number)
        return read_update(body, expected).astype(np.float64)

    # The same seed draws the same noise: what differs is the query alone, up to float32.
    moved = worst(query, awkward(1))
    assert 0 < moved <= sensitivity(spec, number) * TOLERANCE + 1e-4


def test_a_join_round_publishes_a_frame_and_leaves_every_other_file() -> None:
    spec = worlds.spec(privacy={"rounds": 2})
    sites = [SimulatedSite(f"site-{i}", site(i)) for i in range(2)]
    run = simulate(spec, sites, noise=seeded(1), secret=worlds.SECRET)
    last = run.rounds[-1]
    number = spec.last_round + 3  # two joins before have failed
    body = joining_update(spec, number, site(30))
    check_update(body, expectation(spec, number))
    objects = {sha256_of(b): b for b in (body, last.frame, last.weights, last.optimiser)}
    job = AggregateJob(
        job_id="j", lease_token="none", lease_s=1.0, run_id=spec.run_id, round_number=number,
        kind="join", spec=spec,
        updates=(AggregateInput(client_id="new", client="new", digest=sha256_of(body)),),
        frame=sha256_of(last.frame), weights=sha256_of(last.weights),
        optimiser=sha256_of(last.optimiser),
    )  # fmt: skip
    made = aggregate(job, objects.__getitem__)
    assert (made.weights, made.optimiser) == (last.weights, last.optimiser)
    assert made == aggregate(job, objects.__getitem__)
    assert_nothing_old_moved(Frame.from_bytes(last.frame), Frame.from_bytes(made.frame))
    with pytest.raises(ValueError, match="previous frame"):
        aggregate(job.model_copy(update={"frame": None}), objects.__getitem__)

    before = Generator.load(last.frame, last.weights, spec)
    after = Generator.load(made.frame, made.weights, spec)
    for mixture in ("neutral", {"site-0": 1.0}, {"site-0": 0.4, "site-1": 0.6}):
        request = SynthesisRequest(run="r", mixture=mixture, n=200, seed=1)
        old, new = before.sample(request, 1), after.sample(request, 1)
        np.testing.assert_array_equal(new.y, old.y)
        if mixture == "neutral":
            np.testing.assert_array_equal(new.x, old.x)
        np.testing.assert_allclose(new.x, old.x, atol=1e-5)
    alone = after.sample(SynthesisRequest(run="r", mixture={"new": 1.0}, n=200, seed=1), 1)
    assert np.isfinite(alone.x).all()
    assert not np.allclose(alone.x, after.sample(request, 1).x)
