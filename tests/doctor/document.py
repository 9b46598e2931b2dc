"""Writes docs/doctor.md from what the tests of broken set-ups have seen (``make doctor-document``).

With ``DOCTOR_CASES`` each test leaves a file with what ``fedhypevae doctor`` printed in that
folder. Without, it compares that with the document.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "DOCTOR_CASES"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"
ORDER = ("machine", "coordinator", "site")
HEAD = """# What `fedhypevae doctor` says

`fedhypevae doctor` checks this machine, its settings (`FHV_...`) and what they name.
`--coordinator` and `--site` say whose settings are wanted; without them those are checked that are
set. `--json` gives one document for a program. The exit code is 1 if a line says `FAIL`, else 0.

Nothing is changed, but for a small object that is written to the store and deleted again. Tokens
and passwords are never printed. `doctor --site` sends the site's token to its coordinator and
nothing of its records.

Below is what it prints of set-ups that are really broken. This document is written by the tests
that break them (`make doctor-document`), and they fail if it is not what they see. Sites are tried
without a coordinator where it does not matter; the line that says so is shown once.
"""
TITLES = {
    "machine": "Any machine",
    "coordinator": "A coordinator",
    "site": "A site or a worker",
}


def plain(text: str, names: Mapping[str, str]) -> str:
    """Without what differs from one machine or run to the next."""
    for found, name in names.items():
        text = text.replace(found, name)
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", text)
    text = re.sub(r"torch [0-9][0-9a-z.+]*", "torch 2", text)
    text = re.sub(r"hard limit \d+", "hard limit 524288", text)
    return re.sub(r"(Postgres) \d+", r"\1 17", text)


def record(part: str, case: str, lines: list[str]) -> None:
    """Keep it for the document, or compare it with the document."""
    block = _block(case, lines)
    if folder := os.environ.get(VARIABLE):
        name = re.sub(r"[^a-z0-9]+", "-", case.lower())
        said = {"part": part, "case": case, "lines": lines}
        (Path(folder) / f"{part}-{name}.json").write_text(json.dumps(said))
        return
    assert block in DOCUMENT.read_text(), (
        f"docs/doctor.md does not have this (write it with 'make doctor-document'):\n{block}"
    )


def _block(case: str, lines: list[str]) -> str:
    body = "\n".join(lines)
    return f"**{case}**\n\n```text\n{body}\n```\n"


def document(cases: list[dict[str, object]]) -> str:
    parts = [HEAD]
    for part in ORDER:
        parts.append(f"## {TITLES[part]}\n")
        parts += [
            _block(str(case["case"]), list(case["lines"]))  # type: ignore[call-overload]
            for case in sorted(cases, key=lambda each: str(each["case"]))
            if case["part"] == part
        ]
    return "\n".join(parts)


def main() -> None:
    folder = Path(os.environ[VARIABLE])
    cases = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not cases:
        sys.exit(f"no case was recorded in {folder}")
    DOCUMENT.write_text(document(cases))


if __name__ == "__main__":
    main()
