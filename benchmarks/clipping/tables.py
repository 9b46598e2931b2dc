"""The table on the console."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from benchmarks.clipping.cells import LATE, OUT, Cell, Measured
from benchmarks.clipping.plan import OPPONENTS, Limits, Method
from benchmarks.clipping.results import cell, memory_ratio, time_ratio

WIDTH = 126  # columns; narrower consoles would break the rows
METHODS: tuple[Method, ...] = ("non-private", "ours", *OPPONENTS)
NOTES = (
    "First line of a row: ms a step; second: peak MiB; × to the non-private step.",
    "bare c: only the products [B, out] x [out, in t] of the form full; × is ours to both times.",
    "noise: P numbers from the generator of production, ms; part of no other column.",
    "- not measured (fixed rule, see benchmarks/README.md); * predicted from B P alone, not run.",
)


def table(measured: Sequence[Measured], limits: Limits) -> Table:
    """Two lines a row: time and memory."""
    made = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    made.add_column("form, t, d, hidden, B", no_wrap=True)
    made.add_column("P", justify="right", no_wrap=True)
    for name in (*METHODS, "bare c", "noise"):
        made.add_column(name, justify="right", no_wrap=True)
    for place, row in enumerate(measured):
        if place and measured[place - 1].row.form != row.row.form:
            made.add_section()
        key = row.row
        made.add_row(
            f"{key.form} {key.trunk} {key.inputs} {key.hidden} {key.batch}",
            f"{key.network.size:,}",
            *(_cell(row, method, limits) for method in METHODS),
            _bare(row),
            "-" if row.noise_ms is None else _number(row.noise_ms),
        )
    return made


def outcome(found: Cell, limits: Limits) -> str:
    """Why a cell has no number, in words that fit."""
    if found.outcome == OUT:
        if found.predicted_gib is not None:
            return f"out of memory\n{found.predicted_gib:.1f} GiB*"
        return f"out of memory\n> {limits.data_bytes / 2**30:.0f} GiB"
    return f"> {limits.seconds:.0f} s" if found.outcome == LATE else found.outcome.split(":")[0]


def _cell(row: Measured, method: Method, limits: Limits) -> str:
    found = cell(row, method)
    if found.ms is None:
        return outcome(found, limits) or "-"
    time = _number(found.ms) + _times(row, method, time_ratio(row, method))
    if found.mib is None:
        return f"{time}\n{outcome(found, limits).splitlines()[0]}"
    return f"{time}\n" + _number(found.mib) + _times(row, method, memory_ratio(row, method))


def _times(row: Measured, method: Method, ratio: float | None) -> str:
    return "" if method == "non-private" or ratio is None else f" {_number(ratio)}×"


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def _bare(row: Measured) -> str:
    if row.bare_ms is None or row.ratio_to_floor is None:
        return "-"
    return f"{_number(row.bare_ms)} {_number(row.ratio_to_floor)}×"
