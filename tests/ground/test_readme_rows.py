"""What the README shows a data scientist is run as it stands, against a real coordinator."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from core.receipts.cli import verify_app
from core.synthesis.cli import sample_app
from tests.worker.real import Federation, federation, issue

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SECTION = README[README.index("## A data scientist") : README.index("## Privacy and threat model")]


@pytest.fixture
def published(database_url: str, tmp_path: Path) -> Iterator[Federation]:
    with federation(database_url, tmp_path) as fed:
        for name in ("site-a", "site-b"):
            fed.enrol(name, f"{name}/all")
        run = fed.start("first", "site-a", "site-b", privacy={"rounds": 0})
        sites = {name: fed.config(name, f"{name}/all", name) for name in ("site-a", "site-b")}
        fed.complete(run, sites)
        yield fed


def _blocks(language: str, text: str = SECTION) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def _runner(published: Federation, folder: Path) -> Callable[..., str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "FHV_COORDINATOR_URL": published.url,
        "FHV_TOKEN": issue(published.settings, "scientist"),
    }

    def ran(*command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return ran


def test_the_snippets_do_what_the_readme_says(
    published: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = _runner(published, tmp_path)
    shown = "print(len(rows), sorted(rows.columns))\n"
    pandas, arrow, client = _blocks("python")
    lines = ran(sys.executable, "-c", f"{pandas}\n{shown}\n{arrow}").splitlines()
    assert lines[0] == "4000 ['embedding', 'label', 'label_id']"
    assert sum(int(line.split()[0]) for line in lines[1:]) == 20_000
    assert lines[1] == "4096 ['embedding', 'label', 'label_id']"
    command, asked, verified, sampled, reported = _blocks("sh")
    ran(sys.executable, "-m", "core.cli", *shlex.split(command)[1:])
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == 4000
    lines = ran("bash", "-c", asked).splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["embedding", "label", "label_id"]] * 3
    keys = verified.splitlines()[0]
    ran("bash", "-c", keys)
    done = CliRunner().invoke(
        verify_app, [str(tmp_path / "rows.parquet"), "--keys", str(tmp_path / "keys.json")]
    )
    assert done.exit_code == 0, done.output
    assert "ok       rows: 4,000 rows" in done.output
    assert "site-b: epsilon" in done.output
    run = published.operator.runs()["items"][0]["id"]
    ran("bash", "-c", f"run={run}\n{reported}")
    page = (tmp_path / "report.html").read_text()
    assert "site-b" in page
    assert page.endswith("</html>")
    ran(sys.executable, "-c", client)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(sample_app, shlex.split(sampled)[2:])
    assert done.exit_code == 0, done.output
    assert pq.read_table(tmp_path / "home.parquet").num_rows == 1000


def test_the_page_on_taking_away_says_what_works(
    published: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "take-away.md").read_text()
    ran = _runner(published, tmp_path)
    client, loaded = _blocks("python", page)
    assert ran(sys.executable, "-c", client) == "4096\n"
    (tmp_path / "first-round-0.safetensors").rename(tmp_path / "first-round-1.safetensors")
    ran(sys.executable, "-c", loaded)
    ran("bash", "-c", _blocks("sh")[2].splitlines()[0])  # the README's: the keys
    monkeypatch.chdir(tmp_path)
    (commands,) = _blocks("sh", page)
    for line in commands.replace("\\\n", "").splitlines():
        words = shlex.split(line.partition(" #")[0].partition(" |")[0])
        done = CliRunner().invoke(sample_app, words[2:])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    assert {"rows.parquet", "rows.csv"} <= {path.name for path in tmp_path.iterdir()}
