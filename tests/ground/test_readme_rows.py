"""What the README shows a data scientist is run as it stands, against a real coordinator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.receipts.cli import verify_app
from tests.worker.real import Federation, federation, issue

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SECTION = README[README.index("## A data scientist") : README.index("## Privacy and threat model")]


@pytest.fixture
def published(database_url: str, tmp_path: Path) -> Iterator[Federation]:
    with federation(database_url, tmp_path) as fed:
        for name in ("site-a", "site-b"):
            fed.enrol(name, f"{name}/all")
        fed.start("first", "site-a", "site-b", privacy={"rounds": 0})
        sites = {name: fed.config(name, f"{name}/all", name) for name in ("site-a", "site-b")}
        fed.finish(sites, rounds=1)
        yield fed


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, flags=re.DOTALL)


def test_the_snippets_do_what_the_readme_says(published: Federation, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "FHV_COORDINATOR_URL": published.url,
        "FHV_TOKEN": issue(published.settings, "scientist"),
    }

    def ran(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = "print(len(rows), sorted(rows.columns))\n"
    pandas, arrow = _blocks("python")
    lines = ran(sys.executable, "-c", f"{pandas}\n{shown}\n{arrow}").splitlines()
    assert lines[0] == "4000 ['embedding', 'label', 'label_id']"
    assert sum(int(line.split()[0]) for line in lines[1:]) == 20_000
    assert lines[1] == "4096 ['embedding', 'label', 'label_id']"
    asked, verified = _blocks("sh")
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
