"""One figure: how many times a non-private step every method takes, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.clipping.cells import Measured
from benchmarks.clipping.plan import OPPONENTS, Method
from benchmarks.clipping.results import cell, time_ratio

# Okabe and Ito (2008); a marker each, so that no method is told by its colour alone.
_STYLES: dict[Method, tuple[str, str, str]] = {
    "ours": ("#D55E00", "o", "ours"),
    "hooks": ("#0072B2", "s", "opacus, hooks"),
    "ghost": ("#009E73", "^", "opacus, ghost"),
    "vmap": ("#E69F00", "D", "torch.func vmap(grad)"),
}
_WORST = 300.0  # where the axis ends and what was not finished is drawn, unless more was measured


def time_ratios(measured: Sequence[Measured], machine: str, path: Path) -> None:
    """A panel a form; what ran out of memory or time is a cross at the upper edge."""
    forms = list(dict.fromkeys(m.row.form for m in measured))
    figure = Figure(figsize=(11.0, 0.6 + 3.7 * len(forms)), layout="constrained")
    panels = figure.subplots(len(forms), 1, squeeze=False, sharey=True)[:, 0]
    ratios = [r for m in measured for k in _STYLES if (r := time_ratio(m, k)) is not None]
    edge = max([_WORST, *(1.5 * r for r in ratios)])
    for axes, form in zip(panels, forms, strict=True):
        _panel(axes, [m for m in measured if m.row.form == form], edge)
        axes.set_title(form, fontsize=10, loc="left")
    panels[-1].set_xlabel("t, d, hidden, B")
    handles: dict[str, Artist] = {}
    for axes in panels:
        handles |= {label: h for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles),
        frameon=False, fontsize=9,
    )  # fmt: skip
    figure.suptitle(
        f"time of a clipped sum / of a non-private step; × above: out of memory or time\n{machine}",
        fontsize=10, x=0.02, ha="left",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _panel(axes: Axes, measured: Sequence[Measured], edge: float) -> None:
    axes.axhline(1.0, color="#767676", linewidth=1.0)
    axes.axhline(2.0, color="#767676", linewidth=1.0, linestyle=":")
    for method, (colour, marker, label) in _STYLES.items():
        points = [(x, r) for x, m in enumerate(measured) if (r := time_ratio(m, method))]
        if points:
            at, ratio = zip(*points, strict=True)
            axes.plot(at, ratio, marker, color=colour, markersize=5, label=label)
        # Apart from each other, where several methods end on the same row.
        shift = 0.2 * ([*OPPONENTS].index(method) - 1) if method in OPPONENTS else 0.0
        ended = [x + shift for x, m in enumerate(measured) if _ended(m, method)]
        axes.plot(ended, [0.8 * edge] * len(ended), "x", color=colour, markersize=6)
    axes.set_yscale("log")
    axes.set_ylim(0.5, edge)
    names = [f"{m.row.trunk}, {m.row.inputs}, {m.row.hidden}, {m.row.batch}" for m in measured]
    axes.set_xticks(range(len(measured)), names, rotation=90, fontsize=7)
    axes.set_ylabel("ratio")
    axes.grid(visible=True, axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _ended(measured: Measured, method: Method) -> bool:
    found = cell(measured, method)
    return found.ms is None and bool(found.outcome)
