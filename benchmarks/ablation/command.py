"""The command line: which rows, on which records; table, sentences, figure and the last line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.ablation import figures, tables
from benchmarks.ablation.measures import measure
from benchmarks.ablation.results import Results, targets
from benchmarks.ablation.results import figures as numbers
from benchmarks.ablation.variants import DEFAULT, EPSILONS, SEEDS, VARIANTS, for_unit, runs
from benchmarks.last_line import finish
from benchmarks.options import OptionParser
from benchmarks.utility.options import add_options, settings_of
from benchmarks.utility.records import load
from benchmarks.utility.refused import exit_status
from benchmarks.utility.runner import fill
from benchmarks.utility.store import Store, configuration

PROGRAM = "python -m benchmarks.ablation"
VERSION = 1  # raise when a variant changes: cells of another version are not taken up


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog=PROGRAM, description=sys.modules["benchmarks.ablation"].__doc__)
    add_options(parser)
    parser.add_argument(
        "--only", nargs="+", choices=tuple(VARIANTS), metavar="ROW",
        help=f"the default and these rows: {', '.join(n for n in VARIANTS if n != DEFAULT)}",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 whatever was measured, 2 for input that cannot be used, 130 if stopped."""
    arguments = _arguments(argv)
    return exit_status(PROGRAM, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    stdout, stderr = Console(), Console(stderr=True)
    data, settings = load(arguments.data), settings_of(arguments)
    asked = None if arguments.only is None else {DEFAULT, *arguments.only}
    names = [name for name in for_unit(data.unit) if asked is None or name in asked]
    epsilons = sorted(set(arguments.epsilons or EPSILONS))
    wanted = runs(names, epsilons, arguments.seeds or SEEDS)
    about = configuration(data, settings) | {"ablation": VERSION}
    store = Store(arguments.results, about, "ablation")
    fill(store, data, arguments.data, settings, wanted, measure, arguments.jobs, stderr)

    results = Results(store.cells, wanted)
    console = Console(width=max(stdout.width, tables.width(results)))
    console.print(
        f"{data.name}: accuracy on real test records of a classifier that was trained on\n"
        f"{settings.rows:,} records of the neutral code; mean of {arguments.seeds or SEEDS} seeds. "
        "Difference from the default\nplan on the same split, noise and coins, ± its standard "
        f"error.\nLocal noise, delta {settings.delta:g}, unit: {data.unit}.\n"
        "Simulation with seeded noise, NOT PRIVATE.",
        highlight=False,
    )  # fmt: skip
    console.print(tables.table(results))
    console.print(tables.NOTE, highlight=False)
    console.print("\nWhat each part is worth, in points of accuracy", highlight=False)
    sentences = {name: text for name in results.variants if (text := results.worth(name))}
    for text in sentences.values():
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    name = f"ablation-{data.name}"
    path = arguments.results / f"{name}.png"
    if figures.differences(results, data.name, path):
        stderr.print(f"figure: {path}", soft_wrap=True)
    stderr.print(f"cells: {store.path}", soft_wrap=True)
    finish(
        console, arguments.results, name, numbers(results), targets(results),
        {"worth": sentences},
    )  # fmt: skip
