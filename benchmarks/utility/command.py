"""The command line: what to measure, where; tables, figures and the last line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.last_line import finish
from benchmarks.options import OptionParser
from benchmarks.utility import tables
from benchmarks.utility.measures import measure
from benchmarks.utility.options import add_options, count, settings_of
from benchmarks.utility.plan import (
    ALL_METHODS,
    NEUTRAL,
    OURS,
    RUN_COST,
    Job,
    jobs,
    tiers,
)
from benchmarks.utility.records import load
from benchmarks.utility.refused import Refused, exit_status
from benchmarks.utility.report import draw, show
from benchmarks.utility.results import Results
from benchmarks.utility.run_cost import measured
from benchmarks.utility.runner import fill
from benchmarks.utility.splits import Settings, split
from benchmarks.utility.store import Store, configuration
from benchmarks.utility.targets import targets
from core.federation.rule import NoiseMode
from core.secagg.graph import NoThresholds, Thresholds

PROGRAM = "python -m benchmarks.utility"
COLLUDE = 3


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog=PROGRAM, description=sys.modules["benchmarks.utility"].__doc__)
    add_options(parser)
    add = parser.add_argument
    add("--methods", nargs="+", choices=ALL_METHODS, help="these of the standard plan only")
    add("--noise", choices=["local", "aggregated"], default=Settings().noise)
    add("--drop", type=count(low=0), default=0, help="sites that may be missing from a secure sum")
    add("--collude", type=count(low=0), default=COLLUDE,
        help="sites that may see through their own noise (with --noise aggregated)")  # fmt: skip
    add("--reference", help="row of the paired differences; default: ours-neutral")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 whatever was measured, 2 for input that cannot be used, 130 if stopped."""
    arguments = _arguments(argv)
    return exit_status(PROGRAM, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    console, stderr = Console(), Console(stderr=True)
    data = load(arguments.data)
    secure = arguments.noise == "aggregated"
    drop, collude = (arguments.drop, arguments.collude) if secure else (0, 0)
    settings = settings_of(arguments, arguments.noise, drop, collude)
    wanted = jobs(tiers(arguments.methods, arguments.epsilons, arguments.seeds, settings.noise))
    reference = _reference(arguments.reference, wanted, settings.noise)
    if secure:
        _require_sums(len(split(data, settings, 0).sites), drop, collude)
    store = Store(arguments.results, configuration(data, settings))
    fill(store, data, arguments.data, settings, wanted, measure, arguments.jobs, stderr)
    if RUN_COST not in store.cells and any(job.method == OURS for job in wanted):
        store.add({RUN_COST: measured()})
    results = Results(store.cells, wanted, settings.noise)
    show(console, data, settings, results, reference)
    name = f"utility-{data.name}-{settings.noise}"
    if secure:
        name += f"-drop{drop}-collude{collude}"
    for path in draw(data, settings, store.cells, results, arguments.results / name):
        stderr.print(f"figure: {path}", soft_wrap=True)
    stderr.print(f"cells: {store.path}", soft_wrap=True)
    finish(
        console, arguments.results, name, tables.figures(results),
        targets(data.name, settings, results),
    )  # fmt: skip


def _require_sums(sites: int, drop: int, collude: int) -> None:
    try:
        Thresholds.of(sites, drop, collude)
    except NoThresholds as error:
        raise Refused("--collude, --drop", str(error), f"there are {sites} sites") from None


def _reference(asked: str | None, wanted: Sequence[Job], noise: NoiseMode) -> str | None:
    """The row from which differences are taken; None if there is none to take them from."""
    rows = sorted({row for job in wanted for row in job.rows(noise) if job.rate is None})
    if not wanted:
        raise Refused("--methods", "nothing is left to measure", "ours is enough for this noise")
    if asked is not None and asked not in rows:
        raise Refused("--reference", f"{asked!r} is not measured", f"use one of {', '.join(rows)}")
    return asked or (
        NEUTRAL if NEUTRAL in rows else "class-means" if "class-means" in rows else None
    )
