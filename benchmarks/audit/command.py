"""The command line: audit run by run, then the table, the figure and the last line."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.audit import figures, tables
from benchmarks.audit.cases import Audited, Case, audit, cases
from benchmarks.last_line import RESULTS, Target, at_least, at_most, finish
from benchmarks.options import OptionParser
from core.privacy.noise import csprng, seeded

PROGRAM = "python -m benchmarks.audit"
NAME = "audit"
CANARIES, MANY = 1_000, 16_000
# Fewer fill no class; more would need a delta below the one that is audited.
_FEWEST, _MOST = 64, 16_000


def _count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if not _FEWEST <= value <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {_FEWEST} to {_MOST:,}")
    return value


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 whatever was found, 2 for a wrong option, 130 if stopped."""
    names = [case.name for case in cases(CANARIES, MANY)]
    parser = OptionParser(prog=PROGRAM, description=sys.modules["benchmarks.audit"].__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=names, default=names, metavar="RUN",
        help=f"these runs: {', '.join(names)}")  # fmt: skip
    add("--canaries", type=_count, default=CANARIES, help="of runs that are not called many")
    add("--many", type=_count, default=MANY, help="canaries of those that are")
    add("--seed", type=_natural, help="the same figures again; default: the noise of production")
    add("--results", type=Path, default=RESULTS, help="folder of JSON and figure")
    arguments = parser.parse_args(argv)
    chosen = [c for c in cases(arguments.canaries, arguments.many) if c.name in arguments.only]
    try:
        run(chosen, arguments.seed, arguments.results)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    return 0


def run(chosen: Sequence[Case], seed: int | None, folder: Path) -> list[Audited]:
    """Audit, show and write."""
    stdout = Console()
    console = Console(width=max(stdout.width, tables.WIDTH), soft_wrap=False)
    began = time.monotonic()
    found = audited(chosen, seed, Console(stderr=True))
    seconds = round(time.monotonic() - began, 1)
    console.print(tables.table(found))
    for note in tables.notes(found):
        console.print(note, highlight=False)
    figures.bounds(found, folder / f"{NAME}.png")
    numbers = {"seconds": seconds}
    for one in found:
        name = one.case.name
        numbers |= {f"lower@{name}": round(one.proof.epsilon, 4)}
        numbers |= {f"ledger@{name}": round(one.upper, 4)}
    more = {"seed": seed, "audits": [to_json(one) for one in found]}
    finish(stdout, folder, NAME, numbers, targets(found), more)
    return found


def audited(chosen: Sequence[Case], seed: int | None, console: Console) -> list[Audited]:
    """Each case with noise, coins and secrets of its own."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    found = []
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(chosen))
        for place, case in enumerate(chosen):
            progress.update(bar, description=case.name)
            if seed is None:
                found.append(audit(case, csprng(), np.random.default_rng(), os.urandom(32)))
            else:
                coins = np.random.default_rng([seed, place])
                found.append(audit(case, seeded(seed + place), coins, coins.bytes(32)))
            progress.advance(bar)
    return found


def to_json(one: Audited) -> dict[str, object]:
    """All that a row of the table shows, and the plan's part of the case."""
    case = asdict(one.case)
    case["model"] = one.case.model.model_dump()
    return {
        "case": case, "ledger": one.upper, "proof": asdict(one.proof),
        "most": one.most, "ideal": one.ideal, "could_refute": one.could_refute,
    }  # fmt: skip


_BELOW = {
    "run": "lower-bound-below-ledger",
    "many": "lower-bound-below-ledger-many",
    "sketch": "lower-bound-below-ledger-sketch",
    "training": "lower-bound-below-ledger-training",
}
_CAUGHT = {
    "many-broken": "broken-run-is-caught",
    "run-broken": "broken-run-with-training-is-caught",
    "training-broken": "broken-training-is-caught",
}
Make = Callable[[float, float], Target]


def targets(found: Sequence[Audited]) -> dict[str, Target]:
    """The targets for which there are figures, by name."""
    kinds: tuple[tuple[dict[str, str], Make], ...] = ((_BELOW, at_most), (_CAUGHT, at_least))
    made = {}
    for names, make in kinds:
        for one in found:
            if one.case.name in names:
                made[names[one.case.name]] = make(one.proof.epsilon, one.upper)
    return made
