"""One figure: CPU seconds of a round against clients and against P, with straight lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.federation.scaling import Series

_LABELS = {"clients": "clients (P = {p:,})", "parameters": "P ({clients} clients)"}


def costs(series: Sequence[Series], path: Path, **facts: int) -> None:
    """A panel a series; points as measured, the line of least squares."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    panels = figure.subplots(1, len(series), squeeze=False)[0]
    for axes, each in zip(panels, series, strict=True):
        ends = [0.0, max(each.x)]
        axes.plot(ends, [each.line.at(x) for x in ends], color="#767676", linewidth=1.0)
        axes.plot(each.x, each.cost, "o", color="#0072B2", markersize=5)
        axes.set_xlim(left=0.0)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel(_LABELS[each.over].format(**facts))
        axes.set_title(f"R² = {each.line.r2:.4f}", fontsize=10, loc="left")
        axes.grid(visible=True, color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("CPU seconds of a round\n(coordinator, worker, Postgres)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
