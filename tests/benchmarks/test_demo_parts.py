"""Parts of the demo that need no service: plans, site files, scoring, the report."""

from __future__ import annotations

import io
import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import scanner_digits
from benchmarks.demo import evaluation, federation
from benchmarks.demo.main import Options, load_plan, working_folder
from benchmarks.demo.report import HEADING, Report
from benchmarks.demo.sites import Client, budget, write_party
from benchmarks.demo.small import clusters
from core.data import load
from core.evaluation.utility import tstr
from core.federation.rule import spec_for
from core.privacy.premise import NONE, premise
from core.processes import ServiceError, Stopped
from core.synthesis.codes import Code
from core.synthesis.formats import Document, whole
from core.synthesis.rows import Rows
from core.synthesis.streams import BLOCK_ROWS
from worker.config import load_site


@pytest.mark.parametrize("small", [False, True])
def test_the_plan_files_are_plans(small: bool) -> None:
    plan = load_plan(Options(small=small))
    assert plan.model.form == "film"
    assert plan.aggregation == "plain"
    assert plan.round.quorum == 3
    assert plan.space == ("demo-clusters" if small else "scanner-digits")


def test_no_site_has_more_records_than_the_plan_declares() -> None:
    labels = np.repeat(np.arange(10), 500)
    assert max(map(len, scanner_digits.deal(labels))) <= load_plan(Options()).privacy.n_max
    assert max(len(site.train_y) for site in clusters().sites) <= (
        load_plan(Options(small=True)).privacy.n_max
    )


def test_an_unusable_plan_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("name = 'x'\nspace = 'y'\n[privacy]\nepsilon = -1\ndelta = 1e-5\nn_max = 10\n")
    with pytest.raises(ServiceError, match=r"(?s)plan\.toml.*epsilon") as caught:
        load_plan(Options(plan=path))
    assert str(path) in str(caught.value)


def test_a_party_is_what_worker_and_agent_read(tmp_path: Path) -> None:
    data, plan = clusters(), load_plan(Options(small=True))
    clients = [Client(site.name, site, managed=True) for site in data.sites[:2]]
    party = write_party(tmp_path / "party", clients, plan, data.space)
    site = load_site(party.config)
    assert [each.name for each in site.client] == ["site-a", "site-b"]
    assert site.state_dir == party.state
    for each, client in zip(site.client, clients, strict=True):
        assert each.max_epsilon == budget(plan) > plan.privacy.epsilon
        records = load(each.data, data.space, unit=each.unit)
        np.testing.assert_array_equal(records.y, client.site.train_y)
        np.testing.assert_array_equal(records.x, client.site.train_x)
        assert stat.S_IMODE(each.data.stat().st_mode) == 0o600
    assert stat.S_IMODE(party.folder.stat().st_mode) == 0o700


def test_scores_are_those_of_the_core_measure() -> None:
    data = clusters()
    train = data.pooled_train()
    row = evaluation.score("real", train, data, private=False)
    expected = tstr(*train, *data.pooled_test())
    assert row.accuracy == pytest.approx(expected.accuracy, abs=1e-12)
    assert row.balanced == pytest.approx(expected.balanced_accuracy, abs=1e-12)
    assert row.rows == 360
    assert set(row.per_site) == {"site-a", "site-b", "site-c"}
    assert np.mean(list(row.per_site.values())) == pytest.approx(row.accuracy)


def test_the_baseline_beats_chance_by_far() -> None:
    data = clusters()
    rows = evaluation.baseline(data, load_plan(Options(small=True)), 400)
    assert evaluation.score("class means", rows, data, private=True).accuracy > 0.75


class Given:
    """Rows that are there already, as a source of rows and of their labels."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y, self.n = x, np.asarray(y, np.int64), len(y)

    def rows(self, labels: np.ndarray, block: int = 0) -> np.ndarray:
        return self.x[block * BLOCK_ROWS :][: len(labels)]

    def block(self, block: int) -> np.ndarray:
        return self.y[block * BLOCK_ROWS :][:BLOCK_ROWS]


def test_a_table_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    data = clusters()
    x, y = data.sites[0].test_x, data.sites[0].test_y
    given = Given(x, y)
    document = Document(
        rows=Rows((given,), np.ones(1), given, 3),
        classes=data.space.classes,
        codes=(Code("site-a", {"site-a": 1.0}, 1.0, ""),),
        dim=x.shape[1],
        receipt={},
        close=lambda content: {"rows": content.n},
    )
    path = tmp_path / "t.parquet"
    path.write_bytes(whole("parquet", document))
    read_x, read_y = evaluation.read_table(path, data.space)
    np.testing.assert_array_equal(read_x, x)
    np.testing.assert_array_equal(read_y, y)
    assert federation.receipt_of(path) == {"rows": len(y)}


def test_every_object_is_counted_when_it_is_first_fetched() -> None:
    frame = {"digest": "f", "size": 1000}
    rounds = [
        {"frame": frame, "weights": {"digest": f"w{number}", "size": 10 + number}}
        for number in range(3)
    ]
    assert federation.fetched(rounds) == (0, 1010, 11)


def test_the_report_says_what_is_not_private(tmp_path: Path) -> None:
    data, plan = clusters(), load_plan(Options(small=True))
    books = federation.Books(
        name="site-a", epsilon=7.9, delta=1e-4, reserved=4, committed=4, lost=0,
        site_epsilon=7.9, site_committed=4, site_lost=0,
        up_bytes=(4000, 2000, 1000, 6000), down_bytes=(0, 9000, 8000, 700),
    )  # fmt: skip
    rows = [
        evaluation.Row("real data (ceiling)", False, 360, 0.9, 0.89, {"site-a": 0.9}),
        evaluation.Row("synthetic: neutral code", True, 400, 0.8, 0.79, {"site-a": 0.8}),
    ]
    spec = spec_for("run", plan, data.space, 3)
    report = Report(spec, "run", 4, rows, [books], {"a step": 2.0}, 3.0, 2**30, {"n": {}}, [])
    text = io.StringIO()
    report.show(Console(file=text, width=160))
    shown = text.getvalue()
    assert HEADING in shown
    for part in ("0.800", "3.0", "3.5", "8.5", "0.7", "1.00 GiB", "epsilon 8", "delta 0.0001"):
        assert part in shown
    assert "holds while" not in shown
    views = [
        {"who": "booked", "epsilon": 8.0, "premise": premise([1])},
        {"who": "everybody", "epsilon": 13.5, "premise": NONE},
    ]
    replace(report, views=views).show(Console(file=text, width=300))
    assert f"epsilon of founding clients holds while {premise([1])}" in text.getvalue()
    assert "13.5" in text.getvalue()
    path = tmp_path / "report.json"
    report.write(path)
    written = json.loads(path.read_text())
    assert written["accuracy"][1]["accuracy"] == 0.8
    assert written["clients"][0]["up_bytes"] == [4000, 2000, 1000, 6000]
    assert written["plan"] == spec.plan.model_dump(mode="json")
    assert len(data.sites) == 3


def test_the_working_folder_is_kept_only_when_something_failed() -> None:
    text = io.StringIO()
    console = Console(file=text, width=200)
    with working_folder(False, console) as folder:
        (folder / "x").touch()
    assert not folder.exists()
    with pytest.raises(Stopped), working_folder(False, console) as folder:
        raise Stopped(2)
    assert not folder.exists()
    with pytest.raises(ServiceError), working_folder(False, console) as folder:
        raise ServiceError("no")
    assert folder.exists()
    assert str(folder) in text.getvalue()
    folder.rmdir()
