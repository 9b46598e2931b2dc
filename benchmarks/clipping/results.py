"""Reading measured rows: ratios to the non-private step, to opponents, and the worst of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.clipping.cells import LATE, OUT, Cell, Measured
from benchmarks.clipping.plan import Limits, Method, Opponent


def cell(measured: Measured, method: Method) -> Cell:
    return measured.cells.get(method, Cell())


def time_ratio(measured: Measured, method: Method) -> float | None:
    """To the non-private step; None if one of the two was not measured."""
    if method == "ours":
        return measured.ratio
    return _ratio(cell(measured, method).ms, cell(measured, "non-private").ms)


def memory_ratio(measured: Measured, method: Method) -> float | None:
    return _ratio(cell(measured, method).mib, cell(measured, "non-private").mib)


def speed_against(measured: Measured, opponent: Opponent, limits: Limits) -> float | None:
    """How many times faster ours is; at least the limit over ours if the opponent met it."""
    theirs = cell(measured, opponent)
    ms = 1e3 * limits.seconds if theirs.ms is None and theirs.outcome == LATE else theirs.ms
    return _ratio(ms, cell(measured, "ours").ms)


def memory_against(measured: Measured, opponent: Opponent, limits: Limits) -> float | None:
    """Ours over the opponent's; at most ours over the limit if the opponent met it."""
    theirs = cell(measured, opponent)
    out = theirs.mib is None and theirs.outcome == OUT
    return _ratio(cell(measured, "ours").mib, limits.data_bytes / 2**20 if out else theirs.mib)


def worst(
    measured: Iterable[Measured], value: Callable[[Measured], float | None]
) -> tuple[float, Measured] | None:
    """The largest value and its row; None if there is none."""
    found = [(number, row) for row in measured if (number := value(row)) is not None]
    return max(found, key=lambda pair: pair[0], default=None)


def to_json(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """All that was measured, row by row, with the ratios."""
    table = []
    for row in measured:
        content: dict[str, Any] = {
            **asdict(row.row), "parameters": row.row.network.size, "noise_ms": row.noise_ms,
            "bare_ms": row.bare_ms, "ratio_to_floor": row.ratio_to_floor, "cells": {},
        }  # fmt: skip
        for method, found in row.cells.items():
            content["cells"][method] = {
                **asdict(found),
                "time_ratio": time_ratio(row, method),
                "memory_ratio": memory_ratio(row, method),
            }
        table.append(content)
    return table


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or under is None else over / under
