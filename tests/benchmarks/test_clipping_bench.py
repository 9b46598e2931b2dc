"""The cost benchmark: its fixed rule, equal sums of all methods, limits as results, its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.clipping import cells, command, figures, plan
from benchmarks.clipping.case import case
from benchmarks.clipping.cells import LATE, OUT, Cell, Measured
from benchmarks.clipping.opponents import step_of
from benchmarks.clipping.plan import KEY, LIMITS, OPPONENTS, Limits, Opponent, Row
from benchmarks.clipping.results import memory_against, speed_against
from benchmarks.clipping.steps import bare_product, non_private, ours
from benchmarks.clipping.tables import outcome, table
from benchmarks.clipping.targets import targets
from core.models.architecture import Form

README = Path(__file__).resolve().parents[2] / "benchmarks" / "README.md"
QUICK = Limits(budget=0.0, repeats=1)
FORMS: tuple[Form, ...] = ("film", "lowrank", "full")


# --- what is measured ---


def test_rows_and_opponents_are_those_of_the_readme() -> None:
    text = " ".join(README.read_text().split())
    rows = plan.rows()
    against = [row for row in rows if plan.opponents(row)]
    assert len(rows) == len(set(rows)) == 108
    assert len(against) == 18
    assert "All 108 rows" in text
    assert "the 18 rows with t = 8, hidden 256 and B = 256 or 1024" in text
    assert {row.form for row in against} == set(FORMS)
    assert all((row.trunk, row.hidden) == (8, 256) and row.batch >= 256 for row in against)
    assert Row("full", 8, 768, 256, 256) == KEY
    assert plan.opponents(KEY) == OPPONENTS
    assert f"{LIMITS.seconds:.0f} s" in text
    assert f"{LIMITS.data_bytes >> 30} GiB" in text


def test_only_targets_keeps_every_target() -> None:
    rows = plan.rows(only_targets=True)
    assert {row.batch for row in rows} == {256, 1024}
    assert [row for row in rows if plan.opponents(row, only_targets=True)] == [KEY]


# --- all methods compute the same ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", OPPONENTS)
@pytest.mark.filterwarnings("ignore")  # opacus: hooks see no gradient for records
def test_opponents_give_our_clipped_sum(method: Opponent, form: Form) -> None:
    """Every record is longer than the clip norm, so a wrong norm of one would show."""
    made = case(Row(form, 4, 12, 6, 20))
    mine = ours(made)()
    step = step_of(method, made)
    for _ in range(2):  # no step leaves anything to the next one
        theirs = torch.cat([part.flatten() for part in step()])
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-4)
    assert theirs.norm() > 1.0


@pytest.mark.filterwarnings("ignore")
def test_one_record_is_clipped_to_the_clip_norm_over_all_blocks() -> None:
    made = case(Row("full", 4, 12, 6, 1))
    for method in OPPONENTS:
        norm = torch.cat([part.flatten() for part in step_of(method, made)()]).norm()
        assert float(norm) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_non_private_step_gives_every_block_a_gradient(form: Form) -> None:
    made = case(Row(form, 4, 12, 6, 20))
    step = non_private(made)
    first, second = step(), step()
    assert [g.shape for g in first] == [w.shape for w in made.weights.values()]
    torch.testing.assert_close(first, second)


def test_the_bare_product_has_the_form_of_the_largest_product() -> None:
    made = case(Row("full", 4, 12, 6, 20))
    shapes = [(20, into * 4) for _, into in made.network.decoder_shapes]
    assert [tuple(part.shape) for part in bare_product(made)()] == shapes


# --- limits are results ---


def test_a_child_that_needs_too_much_memory_is_out_of_memory() -> None:
    row = Row("film", 8, 384, 64, 4096)
    least = plan.written_out_bytes(row)
    found = cells.opponent("hooks", row, Limits(data_bytes=least + (100 << 20)))
    assert (found.outcome, found.ms, found.predicted_gib) == (OUT, None, None)


def test_what_cannot_fit_is_predicted_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_run", lambda *_: pytest.fail("was run"))
    row = Row("full", 64, 768, 256, 256)
    for method in plan.WRITTEN_OUT:
        found = cells.opponent(method, row, LIMITS)
        assert found.outcome == OUT
        assert found.predicted_gib == pytest.approx(256 * row.network.size * 4 / 2**30)
        assert "GiB*" in outcome(found, LIMITS)


def test_a_child_that_takes_too_long_is_a_result() -> None:
    found = cells.opponent("vmap", Row("film", 4, 12, 6, 8), Limits(seconds=0.2))
    assert found == Cell(outcome=LATE)
    assert outcome(found, LIMITS) == "> 60 s"


def test_an_opponent_at_a_limit_counts_with_the_limit() -> None:
    cells_of: dict[plan.Method, Cell] = {
        "ours": Cell(ms=10.0, mib=100.0),
        "hooks": Cell(outcome=LATE),
        "vmap": Cell(outcome=OUT, predicted_gib=20.0),
    }
    row = Measured(KEY, cells_of)
    assert speed_against(row, "hooks", LIMITS) == pytest.approx(60_000.0 / 10.0)
    assert memory_against(row, "vmap", LIMITS) == pytest.approx(100.0 / (12 * 1024))
    # What ran out of memory took no time that could be compared, and the other way round.
    assert speed_against(row, "vmap", LIMITS) is None
    assert memory_against(row, "hooks", LIMITS) is None
    assert set(targets([row], LIMITS)) == {"speed-against-hooks", "memory-against-vmap"}


# --- the files ---


def test_a_tiny_run_writes_its_table_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row("full", 8, 12, 6, 256)]
    (measured,) = command.run(rows, lambda _: ("ghost",), QUICK, tmp_path)
    assert set(measured.cells) == {"non-private", "ours", "ghost"}
    assert all(c.ms is not None and c.mib is not None for c in measured.cells.values())
    out = capsys.readouterr().out.strip().splitlines()
    content = json.loads((tmp_path / "clipping.json").read_text())
    last = json.loads(out[-1])
    assert last["targets"] == content["targets"]
    assert set(last["targets"]) == {"time-full-t8", "memory-full-t8"}
    (row,) = content["table"]
    assert row["cells"]["ghost"]["time_ratio"] > 0
    assert row["bare_ms"] > 0
    assert content["machine"]["threads"] == 2
    assert (tmp_path / "clipping.png").stat().st_size > 0


def test_rows_without_numbers_can_be_shown(tmp_path: Path) -> None:
    cells_of: dict[plan.Method, Cell] = {"ours": Cell(outcome="failed: x"), "vmap": Cell(None)}
    measured = [Measured(KEY, cells_of)]
    assert table(measured, LIMITS).row_count == 1
    assert targets(measured, LIMITS) == {}
    figures.time_ratios(measured, "a machine", tmp_path / "empty.png")


def test_a_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--fast"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
