"""The standard plan, what flags replace in it, and the cells that a job fills."""

from __future__ import annotations

from benchmarks.utility.plan import (
    ALL_METHODS,
    EPSILONS,
    LINEAR,
    OURS,
    OURS_AGGREGATED,
    PAPER,
    SKETCH,
    SKETCH_AGGREGATED,
    STANDARD,
    Job,
    jobs,
    standard,
    tiers,
)


def test_the_standard_plan_measures_every_method_once() -> None:
    methods = [method for tier in STANDARD for method in tier.methods]
    assert sorted(methods) == sorted(ALL_METHODS)
    found = jobs(tiers(None, None, None, "local"))
    assert len({job.name for job in found}) == len(found)
    per_seed = {m: len([j for j in found if j.method == m and j.seed == 0]) for m in methods}
    assert per_seed["real"] == per_seed["local-only"] == 1
    assert per_seed[OURS] == per_seed["class-means"] == len(EPSILONS)
    assert per_seed[LINEAR] == 3 * len(EPSILONS)
    assert per_seed["dp-cvae"] == 2
    seeds = {m: {j.seed for j in found if j.method == m} for m in methods}
    assert seeds["real"] == seeds[OURS] == set(range(5))
    assert seeds["dp-cvae"] == seeds["dp-merf"] == seeds["class-diagonal"] == {0, 1}


def test_a_flag_takes_the_place_of_its_part_of_every_tier() -> None:
    (tier,) = tiers(["dp-cvae"], None, None, "local")
    assert (tier.methods, tier.epsilons, tier.seeds) == (("dp-cvae",), (1.0, 8.0), 2)
    both = tiers(["dp-cvae", OURS], [8.0, 3.0, 3.0], 1, "local")
    assert {t.methods for t in both} == {(OURS,), ("dp-cvae",)}
    assert all(t.epsilons == (3.0, 8.0) and t.seeds == 1 for t in both)


def test_with_aggregated_noise_ours_is_measured_once() -> None:
    methods = {m for tier in tiers(None, None, None, "aggregated") for m in tier.methods}
    assert OURS in methods
    assert OURS_AGGREGATED not in methods
    assert SKETCH in methods
    assert SKETCH_AGGREGATED not in methods
    rows = ("ours-neutral", "ours-unguided", "ours-classifier")
    assert Job(OURS, 1.0, 0).rows("aggregated") == rows
    assert Job(SKETCH, 1.0, 0).rows("aggregated") == ("sketch-neutral",)


def test_the_papers_mode_is_measured_once_it_is_registered() -> None:
    assert PAPER not in {m for tier in standard(("real",)) for m in tier.methods}
    (tier,) = [tier for tier in standard(("real", PAPER)) if PAPER in tier.methods]
    assert (tier.epsilons, tier.seeds) == ((1.0, 8.0), 2)


def test_one_run_of_ours_fills_four_rows() -> None:
    assert Job(OURS, 1.0, 3).keys("local") == (
        "ours-neutral|1|3", "ours-codes|1|3", "ours-unguided|1|3", "ours-classifier|1|3",
    )  # fmt: skip
    assert Job(SKETCH, 1.0, 3).keys("local") == ("sketch-neutral|1|3", "sketch-codes|1|3")
    assert Job(OURS_AGGREGATED, 1.0, 3).keys("local") == ("ours-aggregated|1|3",)
    assert Job(LINEAR, 0.5, 0, 4.0).keys("local") == ("dp-sgd-linear/4|0.5|0",)
    assert Job("real", None, 0).keys("local") == ("real|-|0",)


def test_fidelity_is_measured_of_what_makes_records_at_few_cells() -> None:
    assert Job(OURS, 1.0, 1).measures_fidelity
    assert Job("real", None, 0).measures_fidelity
    assert not Job(OURS, 2.0, 0).measures_fidelity
    assert not Job(OURS, 8.0, 2).measures_fidelity
    assert not Job(LINEAR, 8.0, 0, 4.0).measures_fidelity
    assert not Job("local-only", None, 0).measures_fidelity


def test_long_jobs_come_first_within_a_seed() -> None:
    found = jobs(tiers(None, None, None, "local"))
    assert [job.seed for job in found] == sorted(job.seed for job in found)
    assert found[0].method == "dp-cvae"
