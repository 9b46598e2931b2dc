"""The command line: part by part, then the table and the last line."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.clipping import machine
from benchmarks.federation.room import Room, room
from benchmarks.last_line import RESULTS, finish, show, shown
from benchmarks.options import OptionParser
from benchmarks.synthesis import parts, results
from benchmarks.synthesis.http import Caller
from benchmarks.synthesis.published import NARROW, USUAL, publish
from benchmarks.synthesis.results import Measured
from core.processes import ServiceError, Stopped, stop_on_signals

PROGRAM = "python -m benchmarks.synthesis"
NAME = "synthesis"
PARTS = ("memory", "rates", "short", "together")
_TRAINING_ROUNDS = 2
_SHORT_KINDS = ("arrow", "json")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 whatever was measured, 1 if a process failed, 2 for a wrong option or
    machine, 130 if stopped.
    """
    parser = OptionParser(prog=PROGRAM, description=sys.modules["benchmarks.synthesis"].__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="some parts")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--logs", type=Path, default=None, help="keep the processes' logs here")
    arguments = parser.parse_args(argv)
    if not sys.platform.startswith("linux"):
        sys.stderr.write(f"{PROGRAM}: memory is read from /proc, so this needs Linux\n")
        return 2
    try:
        with stop_on_signals():
            run(arguments.only, arguments.results, arguments.logs)
    except (Stopped, KeyboardInterrupt):
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    except ServiceError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 1
    return 0


def run(only: Sequence[str], folder: Path, logs: Path | None) -> Measured:
    """Measure, show and write."""
    console, facts, began = Console(), machine.facts(), time.monotonic()
    found = Measured()
    # The longest stream has 10^7 rows; by default a worker makes as many.
    with room(logs, {"FHV_SYNTHESIS_JOB_ROWS": str(parts.MANY)}) as here:
        _measure(here, only, found, Console(stderr=True))
    seconds = round(time.monotonic() - began, 1)
    numbers, goals = results.figures(found), results.targets(found)
    show(console, facts, seconds, shown(numbers, goals))
    more = {"machine": facts, "parts": asdict(found)}
    finish(console, folder, NAME, {**numbers, "seconds": seconds}, goals, more)
    return found


def _measure(here: Room, only: Sequence[str], found: Measured, console: Console) -> None:
    steps = {
        "rates": parts.TURNS * len(parts.STREAM_ROWS),
        "short": len(_SHORT_KINDS),
        "memory": 2,
        "together": 2,
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    token = here.stack.token("scientist")

    def caller() -> Caller:
        return Caller(here.stack.port, token)

    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=2 + sum(steps[part] for part in only))

        def step() -> None:
            progress.advance(bar)

        usual = publish(here, USUAL, _TRAINING_ROUNDS)
        step()
        narrow = publish(here, NARROW, 0)
        step()
        own = caller()
        if "memory" in only:  # first: what others have had at once would hide its growth
            progress.update(bar, description="10^7 rows")
            found.memory = parts.memory(narrow, own, here.api, step)
        if "rates" in only:
            for kind in parts.STREAM_ROWS:
                progress.update(bar, description=f"streaming {kind}")
                found.rates.append(parts.rate(usual, own, kind, step))
        if "short" in only:
            progress.update(bar, description="short answers")
            found.short += [parts.short(usual, own, kind, step) for kind in _SHORT_KINDS]
        if "together" in only:
            progress.update(bar, description="four streams")
            found.together = parts.together(usual, caller, step)
        own.close()
