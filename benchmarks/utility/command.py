"""The command line: what to measure, where; tables, figures and the last line."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from rich.console import Console

from benchmarks.last_line import RESULTS, finish
from benchmarks.options import OptionParser
from benchmarks.utility import tables
from benchmarks.utility.plan import (
    ALL_METHODS,
    CODES,
    NEUTRAL,
    OURS,
    RUN_COST,
    Job,
    jobs,
    tiers,
)
from benchmarks.utility.records import load
from benchmarks.utility.refused import Refused
from benchmarks.utility.report import draw, show
from benchmarks.utility.results import Results
from benchmarks.utility.run_cost import measured
from benchmarks.utility.runner import fill
from benchmarks.utility.splits import Settings
from benchmarks.utility.store import Store, configuration
from benchmarks.utility.targets import targets
from core.federation.rule import NoiseMode
from core.synthesis.request import MAX_ROWS

PROGRAM = "python -m benchmarks.utility"


def _number(low: float, high: float) -> Callable[[str], float]:
    """An option's value strictly between ``low`` and ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value < high:
            above = f" and below {high:g}" if math.isfinite(high) else ""
            raise argparse.ArgumentTypeError(f"{text!r} is no number above {low:g}{above}")
        return value

    return parse


def _count(high: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() else 0
        if value < 1 or (high is not None and value > high):
            bound = "" if high is None else f" to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1{bound}")
        return value

    return parse


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(prog=PROGRAM, description=sys.modules["benchmarks.utility"].__doc__)
    add = parser.add_argument
    standard = Settings()
    add("--data", type=Path, help="npz with x, y and optionally domain, unit")
    add("--clients", type=_count(1_000), default=standard.clients,
        help="unless the data name domains")  # fmt: skip
    add("--alpha", type=_number(0, math.inf), default=standard.alpha, help="of the Dirichlet deal")
    add("--train", type=_number(0, 1), default=standard.train, help="share of units for training")
    add("--epsilons", type=_number(0, 100), nargs="+", help="instead of the standard plan's")
    add("--delta", type=_number(0, 1), default=standard.delta)
    add("--seeds", type=_count(), help="how many (0, 1, ...), instead of the standard plan's")
    add("--methods", nargs="+", choices=ALL_METHODS, help="these of the standard plan only")
    add("--noise", choices=["local", "aggregated"], default=standard.noise)
    add("--rows", type=_count(MAX_ROWS), default=standard.rows,
        help="synthetic records for the classifier")  # fmt: skip
    add("--n-max", type=_count(),
        help="declared public bound on a client's units; default: the smallest of 1, 2, 5 times a "
        "power of ten that holds, as an operator knows the order of magnitude")  # fmt: skip
    add("--reference", help="row of the paired differences; default: ours")
    add("--jobs", type=_count(64), default=os.cpu_count() or 1, help="worker processes")
    add("--results", type=Path, default=RESULTS, help="folder of cells, figures and tables")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 whatever was measured, 2 for input that cannot be used, 130 if stopped."""
    arguments = _arguments(argv)
    try:
        _run(arguments)
    except Refused as refused:
        sys.stderr.write(f"{PROGRAM}: {refused}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; finished cells are kept, the same command goes on from there\n")
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    console, stderr = Console(), Console(stderr=True)
    data = load(arguments.data)
    settings = Settings(
        clients=arguments.clients, alpha=arguments.alpha, train=arguments.train,
        delta=arguments.delta, noise=cast("NoiseMode", arguments.noise), rows=arguments.rows,
        n_max=arguments.n_max,
    )  # fmt: skip
    wanted = jobs(tiers(arguments.methods, arguments.epsilons, arguments.seeds, settings.noise))
    reference = _reference(arguments.reference, wanted, settings.noise)
    store = Store(arguments.results, configuration(data, settings))
    fill(store, data, arguments.data, settings, wanted, arguments.jobs, stderr)
    if RUN_COST not in store.cells and any(job.method == OURS for job in wanted):
        store.add({RUN_COST: measured()})
    results = Results(store.cells, wanted, settings.noise)
    show(console, data, settings, results, reference)
    name = f"utility-{data.name}-{settings.noise}"
    for path in draw(data, settings, store.cells, results, arguments.results / name):
        stderr.print(f"figure: {path}", soft_wrap=True)
    stderr.print(f"cells: {store.path}", soft_wrap=True)
    finish(
        console, arguments.results, name, tables.figures(results),
        targets(data.name, settings, results),
    )  # fmt: skip


def _reference(asked: str | None, wanted: Sequence[Job], noise: NoiseMode) -> str | None:
    """The row from which differences are taken; None if there is none to take them from."""
    rows = sorted({row for job in wanted for row in job.rows(noise) if job.rate is None})
    if not wanted:
        raise Refused("--methods", "nothing is left to measure", "ours is enough for this noise")
    if asked is not None and asked not in rows:
        raise Refused("--reference", f"{asked!r} is not measured", f"use one of {', '.join(rows)}")
    ours = CODES if noise == "local" else NEUTRAL
    return asked or (ours if ours in rows else "class-means" if "class-means" in rows else None)
