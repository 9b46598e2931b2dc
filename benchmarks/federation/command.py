"""The command line: part by part, then the table, the figure and the last line."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.clipping import machine
from benchmarks.federation import (
    figures,
    ingest,
    overhead,
    plans,
    results,
    scaling,
    thousand,
)
from benchmarks.federation.crowd import enrol
from benchmarks.federation.results import Measured
from benchmarks.federation.room import room
from benchmarks.last_line import RESULTS, finish, show, shown
from benchmarks.options import OptionParser
from core.processes import ServiceError, Stopped, stop_on_signals

PROGRAM = "python -m benchmarks.federation"
NAME = "federation"
PARTS = ("overhead", "ingest", "thousand", "scaling")
MANY, SOME = 1_000, 100
# (size of the plan, clients that post, turns)
INGEST = (("33k", 100, 6), ("1250k", 20, 4))
_ROUND_STEPS = 5
Step = Callable[[], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 whatever was measured, 1 if a process failed, 2 for a wrong option or
    machine, 130 if stopped.
    """
    parser = OptionParser(prog=PROGRAM, description=sys.modules["benchmarks.federation"].__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="some parts")
    parser.add_argument("--clients", type=int, default=MANY, help=f"of the part thousand ({MANY})")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON and figure")
    parser.add_argument("--logs", type=Path, default=None, help="keep the processes' logs here")
    arguments = parser.parse_args(argv)
    if not sys.platform.startswith("linux"):
        sys.stderr.write(f"{PROGRAM}: memory and CPU are read from /proc, so this needs Linux\n")
        return 2
    if arguments.clients <= SOME:
        parser.error(f"--clients: more than {SOME}, with which they are compared")
    try:
        with stop_on_signals():
            run(arguments.only, arguments.clients, arguments.results, arguments.logs)
    except (Stopped, KeyboardInterrupt):
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    except ServiceError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 1
    return 0


def run(parts: Sequence[str], clients: int, folder: Path, logs: Path | None) -> Measured:
    """Measure, show and write."""
    console = Console()
    facts = machine.facts()
    began = time.monotonic()
    found = measure(parts, clients, logs, Console(stderr=True))
    seconds = round(time.monotonic() - began, 1)
    numbers, goals = results.figures(found), results.targets(found)
    show(console, facts, seconds, shown(numbers, goals))
    if found.series:
        figures.costs(
            found.series, folder / f"{NAME}.png",
            p=plans.parameters("33k"), clients=scaling.FEW,
        )  # fmt: skip
    more = {"machine": facts, "parts": asdict(found)}
    finish(console, folder, NAME, {**numbers, "seconds": seconds}, goals, more)
    return found


def measure(parts: Sequence[str], clients: int, logs: Path | None, console: Console) -> Measured:
    """Overhead with agents in a room of its own, the parts of simulated clients in another."""
    steps = {
        "overhead": overhead.ROUNDS + 1,
        "ingest": sum(turns for *_, turns in INGEST),
        "thousand": 2 * _ROUND_STEPS,
        "scaling": len(scaling.CLIENTS) + len(scaling.SIZES),
    }
    found = Measured()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=sum(steps[part] for part in parts))

        def begin(what: str) -> Step:
            progress.update(bar, description=what)
            return lambda: progress.advance(bar)

        if "overhead" in parts:
            step = begin("overhead")
            found.overhead = overhead.measure(step, logs=logs and logs / "overhead")
        if set(parts) - {"overhead"}:
            _simulated(parts, clients, logs and logs / "simulated", begin, found)
    return found


def _simulated(
    parts: Sequence[str],
    clients: int,
    logs: Path | None,
    begin: Callable[[str], Step],
    found: Measured,
) -> None:
    most = {"ingest": SOME, "scaling": max(scaling.CLIENTS), "thousand": clients}
    with room(logs) as here:
        step = begin("enrolling clients")
        count = max(most[part] for part in parts if part in most)
        members = asyncio.run(enrol(here.stack.port, here.stack.token("admin"), count))
        if "ingest" in parts:
            port = ingest.start_bare(here)
            for size, posting, turns in INGEST:
                step = begin(f"ingest, P = {plans.parameters(size):,}")
                group = members[:posting]
                found.ingest.append(ingest.measure(here, group, port, size, turns, step))
            here.stack.processes.kill(ingest.BARE)
        if "scaling" in parts:
            step = begin("cost over clients")
            found.series.append(scaling.over_clients(here, members, step))
            step = begin("cost over parameters")
            found.series.append(scaling.over_parameters(here, members, step))
        if "thousand" in parts:
            for count in (SOME, clients):
                step = begin(f"a round of {count} clients")
                found.rounds.append(thousand.measure(here, members[:count], step))
