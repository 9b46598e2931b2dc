"""Time of steps: interleaved, so that a drift of the machine hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

from benchmarks.clipping.plan import Limits
from benchmarks.clipping.steps import Step

# Seconds. A first round longer than ENOUGH is the measurement; one longer than WARM has warmed up
# by itself; repeats end after LONG, from two of them on.
ENOUGH, WARM, LONG = 15.0, 1.0, 6.0


def interleaved(steps: Sequence[Step], limits: Limits) -> list[list[float]]:
    """[repeats][steps] seconds, one after the other: A B C A B C ..., after a warm-up."""
    first = [_seconds(step) for step in steps]
    if sum(first) > ENOUGH:
        return [first]
    if sum(first) < WARM:
        for step in steps:
            step()
    gc.collect()
    found: list[list[float]] = []
    began = time.perf_counter()
    while len(found) < limits.repeats or time.perf_counter() - began < limits.budget:
        found.append([_seconds(step) for step in steps])
        if len(found) > 1 and time.perf_counter() - began > LONG:
            break
    return found


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
