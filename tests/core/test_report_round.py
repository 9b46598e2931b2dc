"""The report round: who takes part, what one unit can move, what it costs, what is published."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from core.data import EmbeddingDataset
from core.errors import UpdateNoiseImplausible
from core.federation.aggregate import aggregate
from core.federation.plan import Noise, Plan, PrivacyPlan, RunSpec, calibrate
from core.federation.planner import Purse, lost_attempts, noise_for, rounds_left
from core.federation.rule import resolved
from core.federation.updates import check_update, expectation
from core.federation.withdrawal import without
from core.models.layout import layout_of, report_layout
from core.privacy import accounting
from core.privacy.mechanism import sensitivity
from core.privacy.noise import csprng, seeded
from core.report import blocks, exact
from core.report.neighbours import Synthetic, bins, row_count
from core.report.reference import PREFIX, Reference, _principal_axes
from core.report.statistics import read
from core.report.vectors import VECTORS
from core.simulation import Simulated, SimulatedSite, simulate
from core.storage import sha256_of
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from core.training.holdout import held_out, members_of
from core.training.local import clipped_total, release
from core.training.report import Comparison, report_sum
from core.wire import tensors
from core.wire.messages import AggregateInput, AggregateJob
from tests.core import worlds
from tests.core.report_world import NOISE, coins, inputs_of, query, spec_of

SPEC = spec_of()
LAST = SPEC.last_round
DATA = worlds.with_units(worlds.clusters(400), np.arange(400) // 3)
SITES = [SimulatedSite("a", DATA), SimulatedSite("b", worlds.clusters(300, seed=1))]
MANY = spec_of(classes=20)  # more than a confusion matrix is counted of
Vector = NDArray[np.float64]


def run_of(spec: RunSpec, sites: list[SimulatedSite]) -> Simulated:
    return simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET)


@pytest.fixture(scope="module")
def run() -> Simulated:
    return run_of(SPEC, SITES)


@pytest.fixture(scope="module")
def many() -> Simulated:
    return run_of(MANY, [SimulatedSite("a", worlds.clusters(300, classes=20))])


# --- rounds and who takes part ---


def kinds(spec: RunSpec) -> list[str]:
    return [spec.kind(number) for number in range(spec.last_round + 2)]


def test_the_report_is_the_plans_last_round() -> None:
    assert kinds(SPEC) == ["sketch", "train", "train", "report", "join"]
    both = spec_of({"validation_share": 0.2})
    assert kinds(both) == ["sketch", "train", "train", "validate", "report", "join"]
    assert kinds(spec_of({"rounds": 0})) == ["sketch", "report", "join"]
    two = {"sketch_steps": 2, "rounds": 0}
    noise = NOISE.model_copy(update={"spread_multiplier": 1.0})
    assert kinds(spec_of(two, noise=noise)) == ["sketch", "spread", "report", "join"]
    assert spec_of({"report_precision": 0.0, "report_holdout": 0.1}).report_round is None


def test_a_plan_without_a_report_says_nothing_of_it() -> None:
    """So what was stored before keeps its digest (see the stored one in test_selection)."""
    plain = worlds.spec()
    assert "report" not in plain.model_dump_json()
    assert "report_multiplier" in spec_of().model_dump_json()
    assert RunSpec.model_validate_json(SPEC.model_dump_json()).digest == SPEC.digest


def test_what_belongs_together_in_a_plan() -> None:
    with pytest.raises(ValidationError, match="report_holdout"):
        spec_of({"report_precision": 0.0})
    with pytest.raises(ValidationError, match="report_precision"):
        worlds.spec(
            privacy={"mode": "paper", "report_precision": 0.1, "sample_rate": 1.0},
            model={"codes": "trained", "encoder": "local", "classifier": "none"},
        )
    missing = spec_of(noise=Noise(sketch_multiplier=1.0, train_multiplier=1.0))
    with pytest.raises(ValueError, match="no noise multiplier for round 3"):
        missing.event(LAST)


def parts(number: int, data: EmbeddingDataset = DATA, spec: RunSpec = SPEC) -> NDArray[np.bool_]:
    return members_of(spec, number, "a", data, coins(spec, number)).valid


def test_a_held_out_unit_is_held_out_of_everything_else() -> None:
    out = held_out(SPEC, "a", DATA)
    assert 0.3 < out.mean() < 0.5
    for number in range(LAST + 2):  # all rounds, the report's members, and a join
        np.testing.assert_array_equal(parts(number), ~out)
    both = spec_of({"validation_share": 0.3})
    trained = parts(0, spec=both)
    chosen = parts(both.last_round - 1, spec=both)
    np.testing.assert_array_equal(parts(both.last_round, spec=both), trained)
    assert (trained.astype(int) + chosen + out == 1).all()  # each record in one part
    assert not held_out(worlds.spec(), "a", DATA).any()


def test_holdouts_are_fixed_by_client_and_unit_and_nest() -> None:
    small = held_out(spec_of({"report_holdout": 0.2}), "a", DATA)
    large = held_out(SPEC, "a", DATA)
    assert small.any()
    assert (large | ~small).all()
    later = SPEC.model_copy(update={"run_id": "another"})
    np.testing.assert_array_equal(held_out(later, "a", DATA), large)
    np.testing.assert_array_equal(
        members_of(SPEC, 1, "a", DATA, coins(SPEC, 1, secret=bytes(32))).valid, ~large
    )
    assert not np.array_equal(held_out(SPEC, "b", DATA), large)


def test_records_of_a_unit_stay_together_and_others_do_not_move_it() -> None:
    out = held_out(SPEC, "a", DATA)
    by_unit = out[:399].reshape(-1, 3)
    assert (by_unit.all(axis=1) | ~by_unit.any(axis=1)).all()
    fewer = worlds.without_unit(DATA, DATA.unit[30])
    np.testing.assert_array_equal(held_out(SPEC, "a", fewer), np.delete(out, slice(30, 33)))
    order = np.random.default_rng(0).permutation(len(DATA))
    mixed = EmbeddingDataset.from_arrays(
        DATA.x[order], DATA.y[order], tuple(DATA.unit[i] for i in order)
    )
    np.testing.assert_array_equal(held_out(SPEC, "a", mixed), out[order])


def test_defect_a_holdout_by_position_moves_other_units() -> None:
    """The first 40 %: who is removed pushes another unit over the border, into training."""
    first = np.arange(400) < 160
    fewer = np.arange(399) < 160
    assert not np.array_equal(np.delete(first, 10), fewer)


def test_a_held_out_unit_moves_no_other_round(run: Simulated) -> None:
    out = held_out(SPEC, "a", DATA)
    for inside, moves in ((np.flatnonzero(out)[0], False), (np.flatnonzero(~out)[0], True)):
        fewer = worlds.without_unit(DATA, DATA.unit[inside])
        for number in (0, LAST + 1):
            same = np.array_equal(query(SPEC, run, DATA, number), query(SPEC, run, fewer, number))
            assert same is not moves
    kept = replace(DATA, valid=DATA.valid & ~out)
    np.testing.assert_array_equal(query(SPEC, run, DATA, 1), query(SPEC, run, kept, 1))


# --- what one unit can move ---


def test_the_weights_of_a_part_have_norm_one() -> None:
    squares = dict.fromkeys((blocks.HELD_OUT, blocks.MEMBERS), 0.0)
    for name, weight in blocks.weights().items():
        squares[name.partition(".")[0]] += weight**2
    assert squares == pytest.approx({blocks.HELD_OUT: 1.0, blocks.MEMBERS: 1.0}, rel=1e-12)


def moved(spec: RunSpec, run: Simulated, data: EmbeddingDataset, count: int = 40) -> list[float]:
    before = query(spec, run, data)
    return [
        float(np.linalg.norm(before - query(spec, run, worlds.without_unit(data, unit))))
        for unit in data.unit_ids[:count]
    ]


def test_one_unit_moves_the_vector_by_no_more_than_the_sensitivity(run: Simulated) -> None:
    assert sensitivity(SPEC, LAST) == 1.0
    found = moved(SPEC, run, DATA)
    assert 0.5 < max(found) <= 1.0 + 1e-9
    single = moved(SPEC, run, worlds.clusters(80, seed=5))
    # One record fills every block of its part, but where its answers are "no".
    assert min(single) > 0.9
    assert max(single) == pytest.approx(1.0, abs=1e-9)


def test_so_with_many_classes(many: Simulated) -> None:
    data = worlds.with_units(worlds.clusters(120, classes=20, seed=2), np.arange(120) // 4)
    assert dict(report_layout(MANY).blocks)["held_out.confusion"] == (20, 2)
    assert 0.3 < max(moved(MANY, many, data)) <= 1.0 + 1e-9


def test_unusable_records_add_nothing(run: Simulated) -> None:
    x = np.vstack([DATA.x[:30], np.full((2, 12), np.nan), np.zeros((1, 12))]).astype(np.float32)
    y = np.append(DATA.y[:30], [0, 1, 2])
    units = (*DATA.unit[:30], DATA.unit[0], b"only-nan", b"only-zero")
    dirty = EmbeddingDataset.from_arrays(x, y, units)
    clean = EmbeddingDataset.from_arrays(DATA.x[:30], DATA.y[:30], DATA.unit[:30])
    np.testing.assert_allclose(query(SPEC, run, dirty), query(SPEC, run, clean), atol=1e-12)
    assert max(moved(SPEC, run, dirty)) <= 1.0 + 1e-9
    nothing = EmbeddingDataset.from_arrays(DATA.x[:0], DATA.y[:0])
    assert not query(SPEC, run, nothing).any()


def test_a_unit_fills_the_blocks_of_its_part_only(run: Simulated) -> None:
    layout = report_layout(SPEC)
    before = layout.split(query(SPEC, run, DATA))
    for row in (np.flatnonzero(held_out(SPEC, "a", DATA))[0], *np.flatnonzero(parts(0))[:1]):
        after = layout.split(query(SPEC, run, worlds.without_unit(DATA, DATA.unit[row])))
        changed = {name.partition(".")[0] for name in before
                   if not np.allclose(before[name], after[name], atol=1e-12)}  # fmt: skip
        assert changed == {blocks.HELD_OUT if held_out(SPEC, "a", DATA)[row] else blocks.MEMBERS}


def test_defect_records_counted_one_by_one_move_it_further(run: Simulated) -> None:
    comparison = Comparison.read(SPEC, inputs_of(run, LAST))
    nobody = replace(DATA, valid=np.zeros(len(DATA), bool))

    def by_record(of: EmbeddingDataset) -> Vector:
        single = EmbeddingDataset.from_arrays(of.x, of.y)
        return report_sum(comparison, single, nobody)

    fewer = worlds.without_unit(DATA, DATA.unit[0])
    assert np.linalg.norm(by_record(DATA) - by_record(fewer)) > 1.5


def test_defect_thresholds_learnt_from_records_move_everybody(run: Simulated) -> None:
    """Bins at the quantiles of the site's own distances: one far unit shifts all of them."""
    comparison = Comparison.read(SPEC, inputs_of(run, LAST))
    data = EmbeddingDataset.from_arrays(DATA.x[:41], DATA.y[:41])
    nobody = replace(data, valid=np.zeros(len(data), bool))

    def learnt(of: EmbeddingDataset) -> Vector:
        own = comparison.synthetic.two_nearest(of.directions)[:, 0]
        wanted = np.linspace(0.02, 0.98, blocks.DISTANCES)
        thresholds = np.quantile(own, wanted)
        reference = replace(comparison.reference, distances=thresholds)
        return report_sum(replace(comparison, reference=reference), nobody, of)

    farthest = data.unit[int(comparison.synthetic.two_nearest(data.directions)[:, 0].argmax())]
    fewer = worlds.without_unit(data, farthest)
    assert np.linalg.norm(learnt(data) - learnt(fewer)) > 1.1
    right = report_sum(comparison, nobody, data) - report_sum(comparison, nobody, fewer)
    assert np.linalg.norm(right) <= 1.0 + 1e-9


# --- the same bins whoever else is there ---


def directions(n: int, seed: int) -> Vector:
    rows = np.random.default_rng(seed).normal(size=(n, 7))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_comparisons_of_a_record_do_not_depend_on_the_batch() -> None:
    others, rows = directions(90, 0), directions(1_300, 1)
    rows[5] = others[7]  # distance 0
    rows[6] = others[3] + others[4]  # as near to one as to the other
    rows[6] /= np.linalg.norm(rows[6])
    radii = exact.two_nearest(rows, others)[:90, 0]  # some records lie on a border
    classifier = np.hstack([others[:5], np.zeros((5, 1))])
    classifier[1] = classifier[0]  # a tie for many records
    two, said = exact.two_nearest(rows, others), exact.labels(rows, classifier)
    within = exact.inside(rows, others, radii)
    slow = np.sort([[np.sqrt(((r - o) ** 2).sum()) for o in others] for r in rows], axis=1)[:, :2]
    np.testing.assert_allclose(two, slow, atol=1e-12)
    for row in (0, 5, 6, 1_023, 1_024, 1_299):
        alone = rows[row : row + 1]
        np.testing.assert_array_equal(exact.two_nearest(alone, others), two[row : row + 1])
        np.testing.assert_array_equal(exact.labels(alone, classifier), said[row : row + 1])
        np.testing.assert_array_equal(exact.inside(alone, others, radii), within[row : row + 1])
    assert (said != 1).all()  # of equal scores the first


def test_a_model_of_equal_rows_cannot_fill_the_memory() -> None:
    """All rows as near as each other to every record, which the coordinator may arrange."""
    rows = np.tile(directions(1, 0), (1_000, 20)) / np.sqrt(20.0)
    others = np.tile(directions(1, 2), (3_000, 20)) / np.sqrt(20.0)
    classifier = np.zeros((400, 141))
    tracemalloc.start()
    try:
        two = exact.two_nearest(rows, others)
        exact.inside(rows, others, two[0, :1].repeat(3_000))
        exact.labels(rows, classifier)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 400e6  # all pairs at once: 3.4 GB
    assert (two == two[0, 0]).all()


def test_axes_of_few_rows_in_many_dimensions() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 40)) * np.linspace(3.0, 0.1, 40)
    centred = rows - rows.mean(axis=0)
    slow = np.linalg.svd(centred, full_matrices=False)[2][:2]
    for given in (rows, np.hstack([rows, np.zeros((60, 200))])):
        axes = _principal_axes(given)[:, :40]
        np.testing.assert_allclose(np.abs(np.sum(axes * slow, axis=1)), 1.0, atol=1e-9)
    assert row_count(SPEC) == 4_000
    assert row_count(worlds.spec(dim=20_000, model={"basis_rank": 2})) == 800


def test_defect_trusting_products_of_matrices_lets_bins_jump(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products that round a row by its place, some 1e-13 apart, as they may."""
    others, rows = directions(90, 0), directions(300, 1)
    draw = np.random.default_rng(3)
    true = exact.squared_distances

    def shaky(a: Vector, b: Vector) -> Any:
        for part, squared in true(a, b):
            yield part, np.maximum(squared + draw.normal(0.0, 1e-12, squared.shape), 0.0)

    borders = np.sort(exact.two_nearest(rows, others)[:, 0])[:: 300 // 10]

    def naive() -> NDArray[np.int64]:
        nearest = np.concatenate(
            [np.sqrt(s.min(axis=1)) for _, s in exact.squared_distances(rows, others)]
        )
        return bins(nearest, borders)

    def ours() -> tuple[bytes, bytes]:
        near = bins(exact.two_nearest(rows, others)[:, 0], borders)
        return near.tobytes(), exact.inside(rows, others, np.full(90, borders[4])).tobytes()

    before_naive, before = naive(), ours()
    monkeypatch.setattr(exact, "squared_distances", shaky)
    assert not np.array_equal(naive(), before_naive)
    assert ours() == before


# --- what the coordinator sends ---


def spoilt(run: Simulated, how: str) -> dict[str, bytes]:
    inputs = inputs_of(run, LAST)
    content, metadata = tensors.unpack(inputs["weights"])
    broken = {name: np.array(value) for name, value in content.items()}
    match how:
        case "missing":
            del broken[PREFIX + "classifiers"]
        case "shape":
            broken[PREFIX + "distances"] = broken[PREFIX + "distances"][1:]
        case "nan":
            broken[PREFIX + "axes"][0, 0] = np.nan
        case "order":
            broken[PREFIX + "distances"][3] = 0.0
        case "domains":
            metadata = metadata | {"report_domains": "{}"}
        case "unnamed":
            metadata = {k: v for k, v in metadata.items() if k != "report_domains"}
        case "weights":
            broken["average"][:] = np.nan
    return inputs | {"weights": tensors.pack(broken, metadata)}


@pytest.mark.parametrize(
    "how", ["missing", "shape", "nan", "order", "domains", "unnamed", "weights"]
)
def test_an_unusable_file_fails_whatever_the_records(run: Simulated, how: str) -> None:
    inputs = spoilt(run, how)
    for data in (DATA, EmbeddingDataset.from_arrays(DATA.x[:0], DATA.y[:0])):
        with pytest.raises(tensors.TensorFileError):
            clipped_total(SPEC, LAST, "a", data, inputs, coins(SPEC, LAST))


def test_the_round_before_carries_what_sites_need_and_no_other(run: Simulated) -> None:
    for number, made in enumerate(run.rounds):
        names = set(tensors.unpack(made.weights)[0])
        assert (PREFIX + "classifiers" in names) == (number == LAST - 1)
        assert (VECTORS in names) == (number == LAST)
    reference = Reference.read(SPEC, run.rounds[-2].weights)
    assert reference.domains == ("a", "b")
    assert reference.classifiers.shape == (3, 3, 13)
    for shares in (reference.nearest, reference.ratio, reference.map):
        assert shares.sum() == pytest.approx(1.0, abs=1e-5)
    synthetic = Synthetic.of(run.generator)
    two = synthetic.two_nearest_others()
    counted = np.bincount(bins(two[:, 0], reference.distances), minlength=blocks.DISTANCES + 1)
    np.testing.assert_allclose(counted / len(two), reference.nearest, atol=0.002)


# --- the update ---


def test_updates_carry_the_promised_noise_and_pass_the_checks(run: Simulated) -> None:
    expected = expectation(SPEC, LAST)
    assert expected.noise_std == 0.5
    assert expected.length == layout_of(SPEC, LAST).size + 256
    bodies = [
        release(
            SPEC, LAST, attempt, "a", DATA, inputs_of(run, LAST), secret=worlds.SECRET,
            noise=csprng(),
        ).update
        for attempt in range(1, 4)
    ]  # fmt: skip
    read_back = []
    for body in bodies:
        check_update(body, expected)
        read_back.append(np.asarray(tensors.unpack(body)[0]["update"], np.float64))
    signal = np.concatenate([query(SPEC, run, DATA), np.zeros(256)])
    noise = np.concatenate([vector - signal for vector in read_back])
    assert noise.std() == pytest.approx(0.5, rel=0.06)
    quiet = SPEC.model_copy(update={"noise": NOISE.model_copy(update={"report_multiplier": 0.3})})
    broken = release(
        quiet, LAST, 1, "a", DATA, inputs_of(run, LAST), secret=worlds.SECRET, noise=csprng()
    ).update
    with pytest.raises(UpdateNoiseImplausible):
        check_update(broken, expected)


# --- what it costs ---


@pytest.mark.parametrize("rounds", [0, 5])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_round_is_paid_for(rounds: int, steps: int) -> None:
    privacy = PrivacyPlan(
        epsilon=2.0, delta=1e-5, n_max=1000, rounds=rounds, sketch_steps=steps,
        sketch_share=0.6 if rounds else None, validation_share=0.1, report_precision=0.3,
    )  # fmt: skip
    privacy = resolved(privacy, worlds.space(), 3)
    noise = calibrate(privacy)
    spec = worlds.spec(privacy=privacy.model_dump(exclude_none=True), noise=noise)
    events = spec.events()
    assert spec.kind(len(events) - 1) == "report"
    assert spec.event(spec.last_round).noise_multiplier == noise.report_multiplier
    assert spec.event(spec.last_round).sample_rate == 1.0
    assert accounting.epsilon(events, 1e-5) == pytest.approx(2.0, rel=1e-3)
    assert accounting.epsilon(events, 1e-5) <= 2.0
    assert accounting.epsilon(events[:-1], 1e-5) < 1.95
    without_report = calibrate(privacy.model_copy(update={"report_precision": 0.0}))
    assert without_report.report_multiplier is None
    if rounds:
        assert (noise.train_multiplier or 0) > (without_report.train_multiplier or 0)
        assert noise.sketch_multiplier == without_report.sketch_multiplier
    else:
        assert noise.sketch_multiplier > without_report.sketch_multiplier


def test_defect_a_report_for_nothing_overspends() -> None:
    """Noise of the plan without the round, and the round besides."""
    privacy = PrivacyPlan(
        epsilon=2.0, delta=1e-5, n_max=1000, rounds=5, sketch_steps=1, sketch_share=0.6,
        validation_share=0.0, report_precision=0.3,
    )  # fmt: skip
    paid = calibrate(privacy)
    free = calibrate(privacy.model_copy(update={"report_precision": 0.0}))
    noise = free.model_copy(update={"report_multiplier": paid.report_multiplier})
    spec = worlds.spec(privacy=privacy.model_dump(), noise=noise)
    assert accounting.epsilon(spec.events(), 1e-5) > 2.05


def test_the_planner_counts_it() -> None:
    privacy = PrivacyPlan(
        epsilon=2.0, delta=1e-5, n_max=1000, rounds=5, sketch_steps=1, sketch_share=0.6,
        validation_share=0.0, report_precision=0.3,
    )  # fmt: skip
    spec = worlds.spec(privacy=privacy.model_dump(), noise=calibrate(privacy))
    purse = Purse((), 2.0, 1e-5)
    assert rounds_left(spec, purse) == 5
    assert set(lost_attempts(spec, purse)) == {"sketch", "train", "report"}
    needed = noise_for(spec, purse, 5, 3)
    assert needed.train_multiplier == pytest.approx(spec.noise.train_multiplier, rel=1e-3)
    sketch_only = accounting.epsilon([spec.event(0)], 1e-5) + 1e-6
    assert not noise_for(spec, Purse((), sketch_only, 1e-5), 0, 3).possible
    assert noise_for(spec, purse, 0, 3).possible


def test_the_rules_of_a_default_plan_do_not_change_with_it() -> None:
    plain = PrivacyPlan(epsilon=4.0, delta=1e-6, n_max=1000)
    with_report = plain.model_copy(update={"report_precision": 0.2})
    one, other = (resolved(each, worlds.space(), 3) for each in (plain, with_report))
    assert (one.sketch_share, one.refine_share) == (other.sketch_share, other.refine_share)


# --- what is published ---


def test_the_model_stays_as_it_was(run: Simulated) -> None:
    before, after = run.rounds[-2], run.rounds[-1]
    assert (after.frame, after.optimiser) == (before.frame, before.optimiser)
    one, other = (tensors.unpack(made.weights) for made in (before, after))
    for name in ("phi", "average"):
        np.testing.assert_array_equal(one[0][name], other[0][name])
    assert other[1]["round"] == str(LAST)
    request = SynthesisRequest(run="r", n=50)
    rows = [
        Generator.load(made.frame, made.weights, SPEC).sample(request, 3)
        for made in (before, after)
    ]
    np.testing.assert_array_equal(rows[0].x, rows[1].x)
    again = run_of(SPEC, SITES)
    assert [made.weights for made in again.rounds] == [made.weights for made in run.rounds]


def aggregated(
    run: Simulated, number: int, kind: str, clients: tuple[str, ...], **more: Any
) -> Any:
    """A round again, from updates of some clients."""
    last = run.rounds[number - 1]
    objects = {sha256_of(getattr(last, role)): getattr(last, role)
               for role in ("frame", "weights", "optimiser")}  # fmt: skip
    named = {role: sha256_of(getattr(last, role)) for role in ("frame", "weights", "optimiser")}
    updates = []
    for client in clients:
        data = next((site.data for site in SITES if site.name == client), DATA)
        body = release(
            SPEC, number, 1, client, data, {"frame": last.frame, "weights": last.weights},
            secret=worlds.SECRET, noise=seeded(1),
        ).update  # fmt: skip
        objects[sha256_of(body)] = body
        updates.append(AggregateInput(client_id=client, client=client, digest=sha256_of(body)))
    job = AggregateJob.model_validate(
        {
            "job_id": "j", "lease_token": "l", "lease_s": 1.0, "run_id": SPEC.run_id,
            "round_number": number, "kind": kind, "spec": SPEC, "updates": tuple(updates),
            **named, **more,
        }
    )  # fmt: skip
    return aggregate(job, objects.__getitem__)


def test_who_did_not_answer_is_named(run: Simulated) -> None:
    found = read(SPEC, aggregated(run, LAST, "report", ("b",)).weights)
    assert found is not None
    assert [site.client for site in found.sites] == ["b"]
    assert found.missing == ("a",)
    gone = read(SPEC, aggregated(run, LAST, "report", ("b",), withdrawn=("a",)).weights)
    assert gone is not None
    assert gone.missing == ()


def test_the_report_outlives_a_join(run: Simulated) -> None:
    joined = aggregated(run, LAST + 1, "join", ("c",))
    found, before = read(SPEC, joined.weights), read(SPEC, run.rounds[-1].weights)
    assert found is not None
    assert before is not None
    assert found.pooled.accuracy == before.pooled.accuracy
    assert Generator.load(joined.frame, joined.weights, SPEC).clients == ("a", "b", "c")


def test_a_withdrawn_clients_report_is_in_no_later_model(run: Simulated) -> None:
    made = without(run.rounds[-1], ["a"])
    found = read(SPEC, made.weights)
    assert found is not None
    assert [site.client for site in found.sites] == ["b"]
    assert found.pooled.accuracy.value == found.sites[0].accuracy.value
    assert '"a"' not in json.dumps(tensors.unpack(made.weights)[1]["report_clients"])
    # And a code that was withdrawn before the round is not tried on anybody's records.
    before = aggregated(run, LAST - 1, "train", ("a", "b"), withdrawn=("a",))
    assert Reference.read(SPEC, before.weights).domains == ()  # one code alone compares nothing


def test_a_run_without_a_report_has_none(run: Simulated) -> None:
    plain = worlds.spec()
    found = run_of(plain, [SITES[1]])
    assert read(plain, found.rounds[-1].weights) is None
    assert read(SPEC, run.rounds[-2].weights) is None


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_whatever_comes_before_the_report(rounds: int, validation: float) -> None:
    spec = spec_of({"rounds": rounds, "validation_share": validation})
    done = run_of(spec, SITES)
    found = read(spec, done.rounds[-1].weights)
    assert found is not None
    assert len(done.events["a"]) == spec.last_round + 1
    assert found.pooled.accuracy.value > 0.9
    assert found.pooled.held_out.value == pytest.approx(0.4 * (134 + 300), rel=0.2)


def test_with_trained_codes_and_a_local_encoder() -> None:
    spec = spec_of({"rounds": 1}, model={"codes": "trained", "encoder": "local"})
    found = read(spec, run_of(spec, SITES).rounds[-1].weights)
    assert found is not None
    assert set(found.pooled.domains) == {"a", "b"}
    assert found.pooled.accuracy.value > 0.9


def test_with_noise_once_in_the_sum_the_pool_is_all_there_is() -> None:
    done = simulate(SPEC, SITES, noise=seeded(0), secret=worlds.SECRET, noise_mode="aggregated")
    found = read(SPEC, done.rounds[-1].weights)
    assert found is not None
    assert len(found.sites) == 1
    assert found.noise_std == 0.5
    assert found.pooled.held_out.value == pytest.approx(0.4 * (134 + 300), rel=0.2)


def test_a_plan_of_a_production_run_may_ask_for_it() -> None:
    plan = Plan.model_validate(
        SPEC.plan.model_dump() | {"purpose": "production", "name": "with-report"}
    )
    assert plan.privacy.reports
