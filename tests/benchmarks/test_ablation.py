"""The ablation on tiny data: rows that change one thing, differences, sentences, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ablation import command
from benchmarks.ablation.command import main
from benchmarks.ablation.measures import measure, paired_up
from benchmarks.ablation.results import Results, figures, targets
from benchmarks.ablation.variants import DEFAULT, PAIRS, VARIANTS, Run, for_unit, runs
from benchmarks.utility.measures import measure as measure_utility
from benchmarks.utility.ours import planned
from benchmarks.utility.plan import Job
from benchmarks.utility.records import Records, from_file
from benchmarks.utility.splits import Settings, Split, split
from core.federation.plan import Plan
from tests.core import worlds

SETTINGS = Settings(clients=3, rows=300)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    data = worlds.clusters(300)
    path = tmp_path / "tiny.npz"
    np.savez(path, x=data.x, y=data.y)
    return path


@pytest.fixture
def world(file: Path) -> tuple[Records, Split]:
    data = from_file(file)
    return data, split(data, SETTINGS, 0)


def plan_of(world: tuple[Records, Split], name: str) -> Plan:
    return planned(*world, SETTINGS, Job("ours", 1.0, 0), VARIANTS[name].changes)


def fields(plan: Plan) -> dict[tuple[str, str], Any]:
    sections = plan.model_dump()
    parts = ("privacy", "model", "sketch", "optimiser", "guidance", "regulariser")
    return {(part, name): value for part in parts for name, value in sections[part].items()}


def test_every_row_is_a_plan_that_differs_as_it_says(world: tuple[Records, Split]) -> None:
    default = fields(plan_of(world, DEFAULT))
    for name, variant in VARIANTS.items():
        changed = {k: v for k, v in fields(plan_of(world, name)).items() if v != default[k]}
        asked = {
            (part, field): value
            for part, some in variant.changes.items()
            for field, value in some.items()
        }
        assert changed == asked, name  # nothing that is the default anyway
        assert len(asked) <= 1 or name in ("no-classifier", "mmd", "lipschitz")


def test_the_default_row_is_the_utility_benchmarks(world: tuple[Records, Split]) -> None:
    (cell,) = measure(*world, SETTINGS, Run(DEFAULT, 8.0, 0)).values()
    other = measure_utility(*world, SETTINGS, Job("ours", 8.0, 0))["ours-neutral|8|0"]
    for name in ("accuracy", "balanced_accuracy", "epsilon_spent"):
        assert cell[name] == other[name]


def test_pairs_are_units_of_two_records_of_one_site(world: tuple[Records, Split]) -> None:
    data, parts = world
    paired = paired_up(parts, 0)
    for before, after in zip(parts.sites, paired.sites, strict=True):
        np.testing.assert_array_equal(before.x, after.x)
        sizes = np.bincount(after.unit_of)
        assert len(sizes) == (len(before) + 1) // 2
        assert sorted(sizes)[1:] == [2] * (len(sizes) - 1)
    plan = planned(data, paired, SETTINGS, Job("ours", 1.0, 0), VARIANTS[PAIRS].changes)
    assert (plan.privacy.unit, plan.privacy.units_expected) == ("patient", 90)
    assert PAIRS in for_unit("record")
    assert PAIRS not in for_unit("patient")


def test_table_sentences_figure_last_line_and_resuming(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    rows = ["sketch-alone", "noise-once"]
    asked = ["--data", str(file), "--clients", "3", "--rows", "300", "--epsilons", "8"]
    asked += ["--seeds", "2", "--jobs", "1", "--results", str(folder), "--only", *rows]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    line = json.loads(shown.strip().splitlines()[-1])
    stored = json.loads((folder / "ablation-tiny.json").read_text())
    assert line == {k: stored[k] for k in ("bench", "figures", "targets")}
    assert line["bench"] == "ablation-tiny"
    assert {name.partition("@")[0] for name in line["figures"]} == {DEFAULT} | {
        text for row in rows for text in (row, f"{row}-minus-default", f"{row}-minus-default-error")
    }
    assert set(line["targets"]) == {"default-minus-best-alternative@8"}
    assert set(stored["worth"]) == set(rows)
    for expected in (
        "NOT PRIVATE",
        "noise-once°",
        "All training rounds:",
        *stored["worth"].values(),
    ):
        assert expected in shown
    assert (folder / "ablation-tiny.png").read_bytes().startswith(b"\x89PNG")

    def never(*_: object) -> dict[str, Any]:
        raise AssertionError("measured again")

    monkeypatch.setattr(command, "measure", never)
    assert main(asked) == 0
    assert capsys.readouterr().out == shown
    with pytest.raises(AssertionError, match="again"):
        main([*asked, "widen-4"])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--only", "magic"], "--only"),
        (["--seeds", "0"], "--seeds"),
        (["--data", "/nowhere.npz"], "--data"),
    ],
)
def test_bad_arguments_are_named(
    wrong: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = main(wrong)
    except SystemExit as exit_:  # argparse
        status = exit_.code
    assert status == 2
    (text,) = capsys.readouterr().err.splitlines()
    assert text.startswith("python -m benchmarks.ablation: ")
    assert named in text


def results(accuracies: dict[str, list[float]]) -> Results:
    """At epsilon 8, by seed."""
    most = max(len(values) for values in accuracies.values())
    cells = {
        Run(name, 8.0, seed).name: {"accuracy": value}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    }
    return Results(cells, runs(tuple(VARIANTS), (8.0,), most))


def test_what_a_part_is_worth_is_said_with_its_sign_and_its_noise() -> None:
    found = results(
        {
            DEFAULT: [0.80, 0.82],
            "no-guidance": [0.76, 0.782],  # removed: the part is worth what is lost
            "full": [0.75, 0.772],  # instead: worth what is gained
            "rounds-40": [0.801, 0.819],
            "features": [0.79, 0.81],
            "mmd": [0.75, 0.772],  # against the row features, not the default
        }
    )
    assert found.worth(DEFAULT) == ""
    assert found.worth("lowrank") == ""
    said = "Labels by the trained classifier: worth +3.9 points at ε = 8."
    assert found.worth("no-guidance") == said
    assert found.worth("full") == "The form full instead of film: worth -4.9 points at ε = 8."
    assert found.worth("rounds-40").endswith("20: within noise at ε = 8 (+0.0).")
    assert found.worth("mmd").endswith("worth -3.9 points at ε = 8.")
    assert figures(found)["mmd-minus-default@8"] == -0.049
    pair = found.difference("no-guidance", 8.0)
    assert pair is not None
    assert pair.error == pytest.approx(0.001)  # differences -0.040 and -0.038


def test_two_seeds_that_agree_by_chance_make_no_finding() -> None:
    found = results(
        {
            DEFAULT: [0.80, 0.80],
            "full": [0.801, 0.801],  # an error of 0, but the other rows' is 0.005
            "widen-1": [0.79, 0.80],
            "widen-4": [0.80, 0.81],
        }
    )
    assert found.worth("full").endswith("within noise at ε = 8 (+0.1).")


def test_a_single_seed_is_called_one() -> None:
    found = results({DEFAULT: [0.80], "full": [0.81]})
    assert found.worth("full").endswith("+1.0 points at ε = 8 on a single seed.")


def test_the_default_is_compared_with_alternatives_under_its_own_terms() -> None:
    found = targets(results({DEFAULT: [0.80], "noise-once": [0.9], "full": [0.809]}))
    assert found == {
        "default-minus-best-alternative@8": {"value": -0.009, "target": -0.01, "ok": True}
    }
    (target,) = targets(results({DEFAULT: [0.80], "full": [0.811]})).values()
    assert target["ok"] is False
