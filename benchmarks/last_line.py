"""How every benchmark ends: its figures as a JSON file, and as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from rich.console import Console

RESULTS = Path(__file__).resolve().parent / "results"


class Target(TypedDict):
    """A figure, what it should reach, and whether it does."""

    value: float
    target: float
    ok: bool


def at_least(value: float, target: float) -> Target:
    shown = _shown(value)
    return {"value": shown, "target": target, "ok": shown >= target}


def at_most(value: float, target: float) -> Target:
    shown = _shown(value)
    return {"value": shown, "target": target, "ok": shown <= target}


def _shown(value: float) -> float:
    """Without the dust of binary fractions, and fine enough that rounding meets no target."""
    return round(value, 6)


def finish(
    console: Console,
    folder: Path,
    name: str,
    figures: Mapping[str, float],
    targets: Mapping[str, Target],
    more: Mapping[str, object] | None = None,
) -> None:
    """Write ``folder/name.json``, with ``more`` if given, and print the rest as the last line."""
    content = {"bench": name, "figures": dict(figures), "targets": dict(targets)}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**content, **(more or {})}, indent=1, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n")
    console.print(json.dumps(content), soft_wrap=True, highlight=False, markup=False)
