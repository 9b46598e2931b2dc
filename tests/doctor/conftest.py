"""``fedhypevae doctor`` in this process, on settings that a test has broken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core import doctor as program
from tests.commands import registered
from tests.doctor import document

Finding = dict[str, str]


@dataclass
class Doctor:
    """``names``: what must not be in the document, and what is written in its place."""

    names: dict[str, str] = field(default_factory=dict)

    def findings(self, *arguments: str) -> list[Finding]:
        """All findings; the exit code must fit them."""
        done = CliRunner().invoke(program.doctor_app, [*arguments, "--json"])
        said = json.loads(done.stdout)
        bad = [each for each in said["findings"] if each["level"] == "fail"]
        assert done.exit_code == bool(bad), done.output
        assert said["failed"] == len(bad)
        for each in said["findings"]:
            assert (each["mend"] == "") == (each["level"] == "ok"), each
        return list(said["findings"])

    def sees(self, part: str, case: str, *wanted: str) -> list[Finding]:
        """What is not well in this part, in this case, and nothing else; as the document has it.

        ``wanted``: "level name" of each finding.
        """
        asked = () if part == "machine" else (f"--{part}",)
        found = [
            each for each in self.findings(*asked) if each["part"] == part and each["level"] != "ok"
        ]
        seen = sorted(f"{each['level']} {each['name']}" for each in found)
        assert seen == sorted(wanted), found
        lines: list[str] = []
        # Where something else is broken too, the document leaves out that nobody answers.
        told = [each for each in found if each["name"] != "coordinator"] or found
        for each in told if "fail coordinator" in wanted else found:
            mark = {"warn": "warn", "fail": "FAIL"}[each["level"]]
            lines += [f"{mark}  {each['name']}: {each['message']}", f"      mend: {each['mend']}"]
        printed = CliRunner().invoke(program.doctor_app, list(asked)).stdout
        for line in lines:
            assert line in printed
        document.record(part, case, [document.plain(line, self.names) for line in lines])
        return found


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Doctor:
    for name in [name for name in os.environ if name.startswith("FHV_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(program, "entry_points", registered)
    return Doctor({str(tmp_path): "/srv/fhv"})


Setting = Callable[..., None]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    """``setting(token="x", env=None)``: FHV_TOKEN is set, FHV_ENV is not."""

    def change(**values: object) -> None:
        for name, value in values.items():
            key = f"FHV_{name.upper()}"
            if value is None:
                monkeypatch.delenv(key, raising=False)
            else:
                monkeypatch.setenv(key, str(value))

    return change
