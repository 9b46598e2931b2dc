"""Cells of the table, each measured by a child process; a limit that it meets is a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.clipping.child import OUT_OF_MEMORY, OWN, Task
from benchmarks.clipping.plan import (
    THREADS,
    WRITTEN_OUT,
    Limits,
    Method,
    Opponent,
    Row,
    written_out_bytes,
)

OUT, LATE = "out of memory", "too slow"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cell:
    """A method on a row: ``ms`` a step and peak ``mib``, or None and why in ``outcome``.

    ``predicted_gib``: what it would allocate at the least, if that alone is over the limit. Then
    nothing was run.
    """

    ms: float | None = None
    mib: float | None = None
    repeats: int = 0
    outcome: str = ""
    predicted_gib: float | None = None


@dataclass
class Measured:
    """A row's cells. ``ratio``: ours to non-private, the median over pairs of steps;
    ``ratio_to_floor``: ours to non-private plus the bare product, in the form full."""

    row: Row
    cells: dict[Method, Cell]
    ratio: float | None = None
    noise_ms: float | None = None
    bare_ms: float | None = None
    ratio_to_floor: float | None = None


def own(rows: Sequence[Row], limits: Limits) -> list[Measured]:
    """Non-private and ours on rows that differ by their batch, all by one child."""
    found, outcome = _run(Task(OWN, rows, limits), limits.seconds * 2 * len(rows))
    measured = []
    for place, row in enumerate(rows):
        values: Mapping[str, Any] = found.get(place, {})
        methods: tuple[Method, ...] = ("non-private", "ours")
        cells: dict[Method, Cell] = {
            m: Cell(**values[m]) if m in values else Cell(outcome=outcome) for m in methods
        }
        rest = {key: value for key, value in values.items() if key not in methods}
        measured.append(Measured(row, cells, **rest))
    return measured


def opponent(method: Opponent, row: Row, limits: Limits) -> Cell:
    """One opponent on one row, by a child of its own."""
    least = written_out_bytes(row)
    if method in WRITTEN_OUT and least > limits.data_bytes:
        return Cell(outcome=OUT, predicted_gib=least / 2**30)
    found, outcome = _run(Task(method, [row], limits), limits.seconds)
    return Cell(**found.get(0, {}).get(method, {}), outcome=outcome)


def _run(task: Task, seconds: float) -> tuple[dict[int, dict[str, Any]], str]:
    """(row's place -> what was found, why the child ended early or "")."""
    threads = {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
    command = [sys.executable, "-m", "benchmarks.clipping.child", task.to_json()]
    with subprocess.Popen(
        command, cwd=_ROOT, env={**os.environ, **threads}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        late = False
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
            child.kill()
            out, err = child.communicate()
        except BaseException:
            child.kill()
            raise
    found: dict[int, dict[str, Any]] = {}
    for line in out.splitlines(keepends=True):
        if line.endswith("\n"):  # what a killed child was writing is cut off
            place, values = json.loads(line)
            found.setdefault(place, {}).update(values)
    return found, LATE if late else _outcome(child.returncode, err)


def _outcome(status: int, stderr: str) -> str:
    """Killed without our doing is the system's last word on memory."""
    if status == 0:
        return ""
    if status in (OUT_OF_MEMORY, -signal.SIGKILL) or "bad_alloc" in stderr:
        return OUT
    last = stderr.strip().splitlines()[-1:] or [f"exit status {status}"]
    return f"failed: {last[0]}"
