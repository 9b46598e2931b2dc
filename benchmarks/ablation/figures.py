"""The differences as a PNG file."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.ablation.results import Results
from benchmarks.ablation.variants import DEFAULT

_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#767676", "v"))


def differences(results: Results, title: str, path: Path) -> bool:
    """Accuracy minus the default's in points, one standard error either way.

    False, and no file, if there is nothing to compare.
    """
    rows = [name for name in results.variants if name != DEFAULT]
    if not rows or DEFAULT not in results.variants:
        return False
    figure = Figure(figsize=(8.5, 1.6 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.0, color="0.4", linewidth=1.0)
    many = len(results.epsilons)
    for number, epsilon in enumerate(results.epsilons):
        colour, marker = _STYLES[number % len(_STYLES)]
        offset = 0.22 * (number - (many - 1) / 2)
        for place, name in enumerate(rows):
            found = results.difference(name, epsilon)
            if found is not None:
                axes.errorbar(
                    100 * found.mean, place + offset, xerr=100 * (found.error or 0.0),
                    color=colour, marker=marker, markersize=4.5, linewidth=1.2, capsize=2,
                )  # fmt: skip
        axes.plot([], [], color=colour, marker=marker, label=f"ε = {epsilon:g}")
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("symlog", linthresh=5.0)  # some parts are worth tens of points, most one
    ticks = [-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10]
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("points of accuracy more than the default plan (linear up to 5)")
    axes.grid(visible=True, axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    figure.suptitle(f"{title}: one thing changed\nsimulation, NOT PRIVATE", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return True
