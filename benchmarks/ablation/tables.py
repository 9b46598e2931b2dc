"""The table and the sentences on the console."""

from __future__ import annotations

from rich import box
from rich.table import Table

from benchmarks.ablation.results import Results
from benchmarks.ablation.variants import DEFAULT, VARIANTS

MARK = "°"
NOTE = f"{MARK} another promise than the default's: another unit, another trust model, or none"


def width(results: Results) -> int:
    """Columns that the table needs; narrower consoles would break its rows."""
    return 24 + 24 * len(results.epsilons)


def table(results: Results) -> Table:
    """Accuracy and difference from the default, with its standard error, at each epsilon."""
    made = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    made.add_column("changed", no_wrap=True)
    for epsilon in results.epsilons:
        made.add_column(f"ε = {epsilon:g}", justify="right", no_wrap=True)
        made.add_column("difference", justify="right", no_wrap=True)
    for name in results.variants:
        cells = [text for epsilon in results.epsilons for text in _cells(results, name, epsilon)]
        made.add_row(name + (MARK if VARIANTS[name].terms else ""), *cells)
        if name == DEFAULT:
            made.add_section()
    return made


def _cells(results: Results, name: str, epsilon: float) -> tuple[str, str]:
    mean, found = results.accuracy(name, epsilon), results.difference(name, epsilon)
    shown = "-" if mean is None else f"{mean.mean:.3f}"
    if found is None or name == DEFAULT:
        return shown, "-"
    error = "" if found.error is None else f" ±{found.error:.3f}"
    return shown, f"{found.mean:+.3f}{error}"
