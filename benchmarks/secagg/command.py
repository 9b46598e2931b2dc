"""``make bench-secagg``: client and coordinator time and bytes beside plain mode."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from benchmarks.clipping import machine
from benchmarks.last_line import RESULTS, Target, at_most, finish
from benchmarks.options import OptionParser
from benchmarks.secagg.cells import Cell, measure

LENGTHS = (10_000, 100_000, 1_000_000, 10_000_000)
SITES = (10, 100, 1_000)
MOST = 100_000_000  # coordinates of all sites together that are really summed
LEAST = 10_000_000  # two lengths of a hundred sites
AT = (100, 1_000_000)
_WIDTH = 110  # columns of the table, where nobody's terminal is narrower
GOALS = {"client": 5.0, "bytes": 1.5, "coordinator": 3.0}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OptionParser(prog="python -m benchmarks.secagg", description=__doc__)
    parser.add_argument(
        "--most", type=int, default=MOST,
        help="Coordinates of all sites together that are really summed; 10,000,000 at the least.",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    given = parser.parse_args(arguments)
    most = given.most
    if most < LEAST:
        parser.error(f"--most takes {LEAST:,} or more: the target's cell is made of no less")
    console, begun = Console(), time.monotonic()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    facts = machine.facts()
    cells: dict[tuple[int, int], Cell] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("secure aggregation", total=len(SITES) * len(LENGTHS))
        for sites in SITES:
            for length in LENGTHS:
                name = f"{sites} sites, {length:,} coordinates"
                if sites * length <= most:
                    say = partial(_say, progress, task, name)
                    cells[sites, length] = measure(sites, length, say)
                else:
                    known = [at for at in LENGTHS if (sites, at) in cells and sites * at <= most]
                    if len(known) > 1:  # else nothing is known of how it grows
                        shorter, longest = known[-2:]
                        cells[sites, length] = cells[sites, longest].beyond(
                            cells[sites, shorter], length
                        )
                progress.advance(task)
    console.print(
        f"{facts['cpu']}, {facts['cores']} cores; load before: {facts['load']}; "
        f"{(time.monotonic() - begun) / 60:.1f} min; processor time, 5 % of the sites vanish",
        highlight=False,
    )
    console.print(_table(cells.values()))
    finish(console, given.results, "secagg", _figures(cells.values()), _targets(cells), facts)
    return 0


def _say(progress: Progress, task: TaskID, name: str, step: str) -> None:
    progress.update(task, description=f"{name}: {step}")


def _table(cells: Collection[Cell]) -> Table:
    table = Table(
        "sites", "coordinates", "k", "bits", "client s", "x plain", "coord. s", "x plain",
        "bytes x plain", "", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for cell in cells:
        ratio = cell.ratios
        table.add_row(
            f"{cell.sites:,}", f"{cell.length:,}", str(cell.neighbours), str(cell.bits),
            f"{cell.client_s:.3f}", f"{ratio['client']:.2f}", f"{cell.coordinator_s:.3f}",
            f"{ratio['coordinator']:.2f}", f"{ratio['bytes']:.3f}",
            "extrapolated" if cell.extrapolated else "",
        )  # fmt: skip
    return table


def _figures(cells: Collection[Cell]) -> dict[str, float]:
    found = {}
    for cell in cells:
        at = f"m{cell.sites}_p{cell.length}"
        mark = "_extrapolated" if cell.extrapolated else ""
        for name, value in cell.ratios.items():
            found[f"{at}_{name}_ratio{mark}"] = round(value, 4)
        found[f"{at}_client_s{mark}"] = round(cell.client_s, 5)
        found[f"{at}_coordinator_s{mark}"] = round(cell.coordinator_s, 5)
    return found


def _targets(cells: dict[tuple[int, int], Cell]) -> dict[str, Target]:
    ratios = cells[AT].ratios
    return {f"{name}_ratio": at_most(ratios[name], goal) for name, goal in GOALS.items()}
