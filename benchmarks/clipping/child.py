"""What a child process measures: ``python -m benchmarks.clipping.child TASK``, TASK as JSON.

It prints a line of JSON for everything that is done, the place of its row and what was found, so
that a child which a limit ends has lost nothing.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.clipping.plan import OPPONENTS, THREADS, Limits, Row

if TYPE_CHECKING:
    from benchmarks.clipping.case import Case
    from benchmarks.clipping.steps import Step

OWN = "own"
OUT_OF_MEMORY = 3  # exit status
_ALLOCATION = ("can't allocate memory", "bad_alloc", "Cannot allocate memory", "failed to map")


@dataclass(frozen=True)
class Task:
    """``method``: an opponent, on one row, or ``OWN``: non-private and ours, on some rows."""

    method: str
    rows: Sequence[Row]
    limits: Limits

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        found = json.loads(text)
        rows = [Row(**row) for row in found["rows"]]
        return cls(found["method"], rows, Limits(**found["limits"]))


def main(text: str) -> int:
    task = Task.from_json(text)
    # Data, not address space: libraries reserve addresses that they never use.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (task.limits.data_bytes, most))
    try:
        for place, row in enumerate(task.rows):
            for found in own(row, task.limits) if task.method == OWN else opponent(task, row):
                sys.stdout.write(json.dumps([place, found]) + "\n")
                sys.stdout.flush()
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        # Whatever fails to allocate: Python, torch, the loader of a library.
        if isinstance(error, MemoryError) or any(known in str(error) for known in _ALLOCATION):
            return OUT_OF_MEMORY
        raise
    return 0


def own(row: Row, limits: Limits) -> Iterator[dict[str, Any]]:
    """Non-private and ours in turn; the bare products for the form full; noise for P numbers."""
    from benchmarks.clipping.case import case
    from benchmarks.clipping.clock import interleaved
    from benchmarks.clipping.steps import bare_product, non_private, ours

    _two_threads()
    made = case(row)
    steps: list[Step] = [non_private(made), ours(made)]
    if row.form == "full":
        steps.append(bare_product(made))
    times = interleaved(steps, limits)
    found: dict[str, Any] = {
        "non-private": _time([t[0] for t in times]) | _peak(made, steps[0]),
        "ours": _time([t[1] for t in times]) | _peak(made, steps[1]),
        "ratio": median(t[1] / t[0] for t in times),
        "noise_ms": 1e3 * _noise_seconds(row.network.size),
    }
    if row.form == "full":
        found["bare_ms"] = 1e3 * median(t[2] for t in times)
        found["ratio_to_floor"] = median(t[1] / (t[0] + t[2]) for t in times)
    yield found


def opponent(task: Task, row: Row) -> Iterator[dict[str, Any]]:
    """Its time, and then its time and peak."""
    from benchmarks.clipping.case import case
    from benchmarks.clipping.clock import interleaved
    from benchmarks.clipping.opponents import step_of

    _two_threads()
    # opacus' hooks see no gradient for records and warn about it; none is wanted.
    warnings.simplefilter("ignore")
    (method,) = (name for name in OPPONENTS if name == task.method)
    made = case(row)
    step = step_of(method, made)
    found = _time([t[0] for t in interleaved([step], task.limits)])
    yield {method: found}
    yield {method: found | _peak(made, step, repeats=1)}


def _time(seconds: Sequence[float]) -> dict[str, float]:
    return {"ms": 1e3 * median(seconds), "repeats": len(seconds)}


def _peak(made: Case, step: Step, repeats: int = 3) -> dict[str, float]:
    from benchmarks.clipping.memory import peak_growth

    return {"mib": (made.given_bytes + peak_growth(step, repeats)) / 2**20}


@cache
def _noise_seconds(size: int) -> float:
    """Rows that differ by their batch need the same noise."""
    from benchmarks.clipping.clock import interleaved
    from core.privacy.noise import csprng

    limits = Limits(budget=0.1, repeats=3)
    return median(t[0] for t in interleaved([lambda: csprng().normal(size, 1.0)], limits))


def _two_threads() -> None:
    import torch

    torch.set_num_threads(THREADS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
