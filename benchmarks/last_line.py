"""How every benchmark ends: its figures as a JSON file, and as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from rich import box
from rich.console import Console
from rich.table import Table

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


def show(
    console: Console, facts: Mapping[str, object], seconds: float, rows: Sequence[Sequence[str]]
) -> None:
    """The table: on which machine and how long, then (what, value, target)."""
    console.print(
        f"{facts['cpu']}, {facts['cores']} cores; load before: {facts['load']}; "
        f"measured in {seconds / 60:.1f} min",
        highlight=False,
    )
    table = Table("what", "value", "target", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def shown(
    numbers: Mapping[str, float], goals: Mapping[str, Target]
) -> Sequence[tuple[str, str, str]]:
    """(what, value, target) for the table: targets first, then everything else."""
    first = [
        (name, f"{goal['value']:,.3g}", f"{goal['target']:g} {'met' if goal['ok'] else 'MISSED'}")
        for name, goal in goals.items()
    ]
    return [*first, *((name, f"{value:,.4g}", "") for name, value in numbers.items())]


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
