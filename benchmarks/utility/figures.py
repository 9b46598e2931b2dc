"""The benchmark's figures as PNG files. All of them look at real records: simulation only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from benchmarks.utility.plan import (
    CLASSIFIER,
    CODES,
    LINEAR,
    NEUTRAL,
    OURS_AGGREGATED,
    PAPER,
    SKETCH_AGGREGATED,
    SKETCH_CODES,
    SKETCH_NEUTRAL,
    UNGUIDED,
)
from benchmarks.utility.results import Results
from core.evaluation.distance import unit_rows

NOTE = "simulation, NOT PRIVATE: shows real records"
Labelled = tuple[NDArray[np.floating], NDArray[np.integer]]

# Okabe and Ito (2008), told apart with every common colour blindness; brown for their yellow,
# which is lost on white.
_ORANGE, _SKY, _GREEN, _BROWN = "#E69F00", "#56B4E9", "#009E73", "#7F4A1E"
_BLUE, _RED, _PINK, _BLACK, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#000000", "#767676"

# Colour, marker and line: no row is told by its colour alone.
_STYLES = {
    "real": (_BLACK, "", "--"),
    "local-only": (_GREY, "", ":"),
    LINEAR: (_GREY, "x", "-."),
    "class-means": (_ORANGE, "s", "-"),
    "shared-gaussian": (_GREEN, "^", "-"),
    "class-diagonal": (_PINK, "D", "-"),
    "dp-merf": (_SKY, "v", "-"),
    "dp-cvae": (_BROWN, "P", "-"),
    PAPER: (_BLACK, "X", ":"),
    SKETCH_NEUTRAL: (_BLUE, "o", "-"),
    SKETCH_CODES: (_BLUE, "o", "--"),
    SKETCH_AGGREGATED: (_BLUE, "*", ":"),
    UNGUIDED: (_RED, "^", "-."),
    CLASSIFIER: (_RED, "x", "-."),
    NEUTRAL: (_RED, "o", "-"),
    CODES: (_RED, "o", "--"),
    OURS_AGGREGATED: (_RED, "*", ":"),
}
_CLASS_COLOURS = (_ORANGE, _SKY, _GREEN, _BLUE, _RED, _PINK)
_POINTS = 80  # of a class in a panel: more hide each other


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(f"{title}\n{NOTE}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


# --- accuracy against epsilon ---


def accuracy(results: Results, title: str, path: Path) -> None:
    """Mean accuracy by epsilon with a band of one standard deviation; real data as ceiling.

    Left everything, right the upper part, where methods that matter are close.
    """
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    whole, upper = figure.subplots(1, 2)
    for axes in (whole, upper):
        for row in results.rows:
            _curve(axes, results, row)
        axes.set_xscale("log", base=2)
        axes.set_xticks(results.epsilons, [f"{e:g}" for e in results.epsilons])
        axes.minorticks_off()
        axes.set_xlabel("ε for each client")
        axes.grid(visible=True, color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    whole.set_ylabel("accuracy on real test records")
    whole.set_ylim(bottom=0.0)
    whole.set_title("all methods", fontsize=10)
    upper.set_title("the upper part", fontsize=10)
    upper.set_ylim(_upper_part(results))
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    _save(figure, path, f"{title}: accuracy against ε, mean ± sd over seeds")


def _curve(axes: Axes, results: Results, row: str) -> None:
    found = [(e, s) for e in results.epsilons if (s := results.summary(row, e)) is not None]
    if not found:
        return
    at = np.array([e for e, _ in found])
    mean = np.array([s.mean for _, s in found])
    sd = np.array([s.sd or 0.0 for _, s in found])
    colour, marker, line = _STYLES[row]
    notes = {"real": " (not private)", "local-only": " (not private)", LINEAR: " (best rate)",
             PAPER: " (no record-level\nguarantee)"}  # fmt: skip
    axes.plot(
        at, mean, color=colour, marker=marker, linestyle=line, markersize=5, linewidth=1.6,
        label=row + notes.get(row, ""),
    )  # fmt: skip
    axes.fill_between(at, mean - sd, mean + sd, color=colour, alpha=0.13, linewidth=0)


def _upper_part(results: Results) -> tuple[float, float]:
    """From a little below the middle of what was measured to a little above the best."""
    means = [s.mean for r in results.rows for e in results.epsilons if (s := results.summary(r, e))]
    low, high = float(np.median(means)), max(means)
    height = max(high - low, 0.05)
    return low - 0.6 * height, high + 0.1 * height


# --- which code reproduces which client ---


def fidelity(matrices: Sequence[tuple[float, dict[str, Any]]], title: str, path: Path) -> None:
    """MMD between samples of each code (rows) and clients' held-out records (columns).

    ``matrices`` are (epsilon, what ``measures.matrix`` found). The colour is the difference from
    the neutral code in the same column; a frame marks each client's nearest source.
    """
    sources, clients = matrices[0][1]["sources"], matrices[0][1]["clients"]
    rows, columns = len(sources), len(clients)
    side = 0.62 if columns > 5 else 1.0
    size = (2.6 + len(matrices) * columns * side, 2.0 + max(rows * 0.42, 2.2))
    figure = Figure(figsize=size, layout="constrained")
    drawn = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
    values = [np.array(found["mmd"], np.float64) for _, found in matrices]  # None becomes NaN
    gaps = [value - value[-1] for value in values]
    reach = max((float(np.nanmax(np.abs(g))) for g in gaps if np.isfinite(g).any()), default=0.0)
    norm = CenteredNorm(halfrange=reach or 1e-9)
    for axes, (epsilon, _), value, gap in zip(drawn, matrices, values, gaps, strict=True):
        image = axes.imshow(gap, cmap="PuOr_r", norm=norm, aspect="auto")
        _annotate(axes, value, gap, reach)
        axes.set_xticks(range(columns), clients, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(rows), [s if s == "neutral" else f"code of {s}" for s in sources],
                        fontsize=8)  # fmt: skip
        axes.set_xlabel("held-out records of")
        own = int(np.sum(_nearest(value) == np.arange(columns)))
        axes.set_title(f"ε = {epsilon:g}: own code nearest for {own} of {columns}", fontsize=10)
    bar = figure.colorbar(image, ax=list(drawn), shrink=0.9)
    bar.set_label("MMD² minus the neutral code's\n(below 0: nearer to this client)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    _save(figure, path, f"{title}: 10⁴ × MMD² by code, boxed: nearest to the client")


def _annotate(
    axes: Axes, value: NDArray[np.float64], gap: NDArray[np.float64], reach: float
) -> None:
    for (k, m), number in np.ndenumerate(value):
        if np.isfinite(number):
            strong = abs(gap[k, m]) > 0.6 * reach
            axes.text(m, k, f"{1e4 * number:.0f}", ha="center", va="center", fontsize=8,
                      color="white" if strong else "black")  # fmt: skip
    for m, nearest in enumerate(_nearest(value)):
        if nearest >= 0:
            corner = (m - 0.5, nearest - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=_BLACK, linewidth=1.8))


def _nearest(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """[clients] the source with the least MMD; -1 where none could be measured."""
    measured = np.where(np.isnan(value), np.inf, value)
    return np.where(np.isfinite(measured).any(axis=0), measured.argmin(axis=0), -1)


# --- projections ---


def projections(
    real: Labelled,
    panels: Sequence[tuple[str, float, Labelled]],
    classes: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Two principal axes of REAL test records' class means; all panels on the same axes.

    ``panels`` are (method, epsilon, rows), a method after the other. Real records alone define
    the axes, so they favour no method; class means rather than records, because what the classes
    share would hide what parts them. Shown are the most frequent test classes.
    """
    directions, labels = unit_rows(real[0]), real[1]
    shown = np.argsort(-np.bincount(labels, minlength=len(classes)), kind="stable")
    shown = np.sort(shown[: len(_CLASS_COLOURS)])
    means = np.stack([directions[labels == c].mean(axis=0) for c in shown if (labels == c).any()])
    centre = means.mean(axis=0)
    axes_2d = np.linalg.svd(means - centre, full_matrices=False)[2][:2]
    methods = list(dict.fromkeys(method for method, _, _ in panels))
    columns = max(sum(m == method for m, _, _ in panels) for method in methods)
    figure = Figure(figsize=(3.1 * (columns + 1), 0.9 + 2.9 * len(methods)), layout="constrained")
    grid = figure.subplots(len(methods), columns + 1, squeeze=False, sharex=True, sharey=True)
    for axes in grid.ravel():
        axes.set_axis_off()
    _scatter(grid[0, 0], real, shown, centre, axes_2d, "real test records")
    for row, method in enumerate(methods):
        own = [panel for panel in panels if panel[0] == method]
        for column, (_, epsilon, rows) in enumerate(own, 1):
            name = f"{method}, ε = {epsilon:g}"
            _scatter(grid[row, column], rows, shown, centre, axes_2d, name)
    handles, _ = grid[0, 0].get_legend_handles_labels()
    names = [classes[c] for c in shown]
    style = {"frameon": False, "title": "class", "markerscale": 2.5}
    if len(methods) > 1:
        grid[-1, 0].legend(handles, names, loc="center", **style)  # the grid's empty corner
    else:
        figure.legend(handles, names, loc="outside right center", **style)
    _save(figure, path, f"{title}: two principal axes of real class means")


def _scatter(
    axes: Axes,
    rows: Labelled,
    shown: NDArray[np.integer],
    centre: NDArray[np.float64],
    axes_2d: NDArray[np.float64],
    name: str,
) -> None:
    axes.set_axis_on()
    axes.set_title(name, fontsize=10)
    axes.set(xticks=[], yticks=[])
    directions = unit_rows(rows[0]) - centre
    for label, colour in zip(shown, _CLASS_COLOURS, strict=False):
        at = (directions[rows[1] == label][:_POINTS]) @ axes_2d.T
        axes.scatter(at[:, 0], at[:, 1], s=7, color=colour, alpha=0.6, linewidths=0,
                     label=str(label))  # fmt: skip
