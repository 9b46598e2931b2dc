"""One figure: the bounds of every run, and how well the attacker tells canaries that are in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.audit.cases import Audited

# Okabe and Ito (2008); a marker each, so that nothing is told by its colour alone.
_IN, _OUT = "#D55E00", "#0072B2"


def bounds(found: Sequence[Audited], path: Path) -> None:
    """Above, a column a run: lower bound, perfect attack, most, ledger. Below, its beliefs."""
    figure = Figure(figsize=(1.0 + 2.0 * max(3, len(found)), 6.5), layout="constrained")
    grid = figure.add_gridspec(2, len(found), height_ratios=(1.4, 1.0))
    _panel(figure.add_subplot(grid[0, :]), found)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    for place, one in enumerate(found):  # after the legend of the whole figure
        _beliefs(figure.add_subplot(grid[1, place]), one, first=place == 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _panel(axes: Axes, found: Sequence[Audited]) -> None:
    at = np.arange(len(found))
    styles = (
        ("ledger, upper bound", [one.upper for one in found], "#000000", "_", 28),
        ("most that so many canaries prove", [one.most for one in found], "#767676", "x", 7),
        ("perfect attack, noise as booked", [one.ideal for one in found], "#009E73", "D", 6),
        ("lower bound", [one.proof.epsilon for one in found], _IN, "o", 8),
    )
    for label, values, colour, marker, size in styles:
        axes.plot(at, values, marker, color=colour, markersize=size, label=label)
    names = [f"{one.case.name}\n{one.proof.canaries:,} canaries" for one in found]
    axes.set_xticks(at, names, fontsize=8)
    axes.set_xlim(-0.5, len(found) - 0.5)
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("epsilon")
    axes.grid(visible=True, axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _beliefs(axes: Axes, one: Audited, *, first: bool) -> None:
    edges = np.linspace(-0.5, 1.5, 41).tolist()
    shown = np.clip(one.belief, edges[0], edges[-1])
    axes.hist(shown[~one.included], edges, color=_OUT, alpha=0.6, label="out")
    axes.hist(shown[one.included], edges, color=_IN, histtype="step", linewidth=1.5, label="in")
    axes.set_yticks([])
    axes.set_xlabel("belief", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if first:
        axes.legend(frameon=False, fontsize=8)
