"""The benchmark of /synthesize: its arithmetic, its command line, its bare counterpart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.last_line import shown
from benchmarks.synthesis import command, parts, results
from benchmarks.synthesis.parts import Memory, Rate, Short, Together
from benchmarks.synthesis.published import Published
from benchmarks.synthesis.results import Measured
from core.federation.plan import Noise
from core.privacy.noise import seeded
from core.simulation import SimulatedSite, simulate
from core.synthesis.formats import FORMATS
from tests.core import worlds


def measured(**changes: Any) -> Measured:
    found = Measured(
        rates=[Rate("arrow", (80.0, 90.0, 100.0), (90.0, 100.0, 110.0))],
        short=[Short("json", (0.03, 0.02, 0.04), (0.01, 0.02, 0.02))],
        memory=Memory(100.0, 150.0, 160.0, 2e5),
        together=Together((4.0, 4.2, 4.1, 4.0), 1.2, (0.001, 0.049, 0.002)),
    )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def test_every_target_of_the_issue_is_judged() -> None:
    goals = results.targets(measured())
    assert goals == {
        "arrow-to-bare": {"value": 0.9, "target": 0.8, "ok": True},
        "json-1000-p50-to-bare": {"value": 1.5, "target": 2.0, "ok": True},
        "memory-growth-1e4-to-1e7": {"value": 1.066667, "target": 1.1, "ok": True},
        "four-streams-slowest-to-fastest": {"value": 1.05, "target": 1.25, "ok": True},
        "health-max-ms": {"value": 49.0, "target": 50.0, "ok": True},
    }


def test_what_falls_short_is_missed() -> None:
    found = measured(
        rates=[Rate("json", (49.0,), (100.0,)), Rate("parquet", (79.0,), (100.0,))],
        short=[Short("arrow", (0.041,), (0.02,))],
        memory=Memory(100.0, 150.0, 166.0, 2e5),
        together=Together((4.0, 5.1), 1.2, (0.001, 0.051)),
    )
    goals = results.targets(found)
    assert len(goals) == 6
    assert not any(goal["ok"] for goal in goals.values())


def test_figures_are_finite_and_shown() -> None:
    numbers = results.figures(measured())
    assert numbers["arrow-rows-per-s"] == 90.0
    assert numbers["json-1000-p50-ms"] == 30.0
    assert numbers["health-p99-ms"] == 49.0
    assert all(np.isfinite(value) for value in numbers.values())
    listed = shown(numbers, results.targets(measured()))
    assert listed[0] == ("arrow-to-bare", "0.9", "0.8 met")
    assert len(listed) == 5 + len(numbers)
    assert json.dumps(numbers)


def test_the_bare_counterpart_makes_the_same_rows_without_a_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sites = [SimulatedSite(name, worlds.clusters(200, seed=i)) for i, name in enumerate("ab")]
    noise = Noise(sketch_multiplier=0.01, train_multiplier=0.05)
    spec = worlds.spec(privacy={"rounds": 0}, noise=noise)
    generator = simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET).generator
    written: dict[str, bytes] = {}
    for kind, each in list(FORMATS.items()):

        def kept(document: Any, kind: str = kind, pieces: Any = each.pieces) -> Any:
            for piece in pieces(document):
                written[kind] = written.get(kind, b"") + piece
                yield piece

        monkeypatch.setitem(parts.FORMATS, kind, type(each)(each.media, kept))  # type: ignore[arg-type]
    model = Published("r", spec.space.dim, generator)
    for kind in parts.STREAM_ROWS:
        assert parts.bare(model, kind, 9_000) > 0
        assert written[kind]
    rows = json.loads(written["json"])
    assert (rows["n"], rows["receipt"]) == (9_000, {})


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--only", "nothing"], "--only"), (["--fast"], "--fast")]
)
def test_wrong_options_are_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([*arguments, "--results", str(tmp_path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
