"""What the figures should reach, and whether they do; set before anything was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.clipping.cells import Measured
from benchmarks.clipping.plan import KEY, OPPONENTS, Limits, Row
from benchmarks.clipping.results import (
    memory_against,
    memory_ratio,
    speed_against,
    time_ratio,
    worst,
)
from benchmarks.last_line import Target, at_least, at_most

TIME, MEMORY, FLOOR = 2.0, 1.5, 1.3
FASTER = {"hooks": 10.0, "ghost": 2.0, "vmap": 10.0}
SMALLER = {"hooks": 0.1, "vmap": 0.1}
LEAST_BATCH = 256
Value = Callable[[Measured], float | None]


def targets(measured: Sequence[Measured], limits: Limits) -> dict[str, Target]:
    """The targets for which there are figures, by name."""
    found = {name: at_most(value, goal) for name, (value, _, goal) in worsts(measured).items()}
    for row in measured:
        if row.row != KEY:
            continue
        for method in OPPONENTS:
            speed = speed_against(row, method, limits)
            if speed is not None:
                found[f"speed-against-{method}"] = at_least(speed, FASTER[method])
            share = memory_against(row, method, limits)
            if share is not None and method in SMALLER:
                found[f"memory-against-{method}"] = at_most(share, SMALLER[method])
    return found


def worsts(measured: Sequence[Measured]) -> dict[str, tuple[float, Row, float]]:
    """Name -> (worst ratio, at which row, at most what), of rows with a batch that is no toy."""
    found = {}
    kinds: dict[str, Callable[[Row], bool]] = {
        "film": lambda row: row.form == "film",
        "lowrank": lambda row: row.form == "lowrank",
        "full-t8": lambda row: row.form == "full" and row.trunk == 8,
        "full-t64": lambda row: row.form == "full" and row.trunk == 64,
    }
    for kind, belongs in kinds.items():
        mine = [m for m in measured if m.row.batch >= LEAST_BATCH and belongs(m.row)]
        if kind == "full-t64":
            values: dict[str, tuple[Value, float]] = {
                "time-to-floor": (lambda m: m.ratio_to_floor, FLOOR)
            }
        else:
            values = {
                "time": (lambda m: time_ratio(m, "ours"), TIME),
                "memory": (lambda m: memory_ratio(m, "ours"), MEMORY),
            }
        for what, (value, goal) in values.items():
            pair = worst(mine, value)
            if pair is not None:
                found[f"{what}-{kind}"] = (pair[0], pair[1].row, goal)
    return found
