"""The command line: measure row by row, then the table, the figure and the last line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.clipping import cells, figures, machine, plan, tables
from benchmarks.clipping.cells import Measured
from benchmarks.clipping.plan import LIMITS, Limits, Opponent, Row
from benchmarks.clipping.results import to_json
from benchmarks.clipping.targets import targets, worsts
from benchmarks.last_line import RESULTS, finish
from benchmarks.options import OptionParser

PROGRAM = "python -m benchmarks.clipping"
NAME = "clipping"
Chosen = Callable[[Row], Sequence[Opponent]]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 whatever was measured, 2 for a wrong option or machine, 130 if stopped."""
    parser = OptionParser(prog=PROGRAM, description=sys.modules["benchmarks.clipping"].__doc__)
    parser.add_argument(
        "--only-targets", action="store_true",
        help="only what a target is about: B >= 256, opponents on one row; about half the time",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON and figure")
    arguments = parser.parse_args(argv)
    if not sys.platform.startswith("linux"):
        sys.stderr.write(f"{PROGRAM}: peaks of memory are read from /proc, so this needs Linux\n")
        return 2
    only = arguments.only_targets
    try:
        run(plan.rows(only), lambda row: plan.opponents(row, only), LIMITS, arguments.results)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    return 0


def run(rows: Sequence[Row], chosen: Chosen, limits: Limits, folder: Path) -> list[Measured]:
    """Measure, show and write."""
    stdout = Console()
    console = Console(width=max(stdout.width, tables.WIDTH), soft_wrap=False)
    began = time.monotonic()
    facts = machine.facts()
    measured = measure(rows, chosen, limits, Console(stderr=True))
    seconds = time.monotonic() - began
    console.print(
        f"{machine.in_words(facts)}; load before: {facts['load']}; "
        f"measured in {seconds / 60:.1f} min",
        highlight=False,
    )
    console.print(tables.table(measured, limits))
    for note in tables.NOTES:
        console.print(note, highlight=False)
    found = worsts(measured)
    for name, (value, row, goal) in found.items():
        console.print(f"worst {name}: {value:.2f} (at most {goal:g}) at {row.name}",
                      highlight=False)  # fmt: skip
    figures.time_ratios(measured, machine.in_words(facts), folder / f"{NAME}.png")
    numbers = {"rows": float(len(measured)), "seconds": round(seconds, 1)}
    more = {"machine": facts, "table": to_json(measured)}
    finish(stdout, folder, NAME, numbers, targets(measured, limits), more)
    return measured


def measure(
    rows: Sequence[Row], chosen: Chosen, limits: Limits, console: Console
) -> list[Measured]:
    """Non-private and ours for an architecture at a time, then its opponents."""
    measured: list[Measured] = []
    total = len(rows) + sum(len(chosen(row)) for row in rows)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=total)
        for _, group in groupby(rows, key=lambda row: row.network):
            some = list(group)
            progress.update(bar, description=some[0].name)
            found = cells.own(some, limits)
            progress.advance(bar, len(some))
            for row in found:
                for method in chosen(row.row):
                    progress.update(bar, description=f"{row.row.name} {method}")
                    row.cells[method] = cells.opponent(method, row.row, limits)
                    progress.advance(bar)
            measured += found
    return measured
