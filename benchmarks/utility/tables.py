"""The tables on the console and the flat figures of the last line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from benchmarks.utility.plan import (
    CLASSIFIER,
    CODES,
    DOMAIN_EPSILON,
    FIDELITY_EPSILONS,
    LINEAR,
    NEUTRAL,
    NOT_PRIVATE,
    OURS,
    PAPER,
    SKETCH,
    SKETCH_CODES,
    SKETCH_NEUTRAL,
)
from benchmarks.utility.results import Results, Summary

FIDELITY = ("mmd", "precision", "recall", "density", "coverage", "membership_auc")
UTILITY = ("accuracy", "balanced_accuracy")
_NOTES = (
    (NOT_PRIVATE, "° not private: real records without noise"),
    ((LINEAR,), "* makes no records; best of three learning rates per ε, a choice not charged"),
    ((CLASSIFIER,), "' makes no records: our trained classifier itself on real test records"),
)
# Whose codes are compared with its neutral one: method, row of all codes, neutral row.
_BY_CODE = ((OURS, CODES, NEUTRAL), (SKETCH, SKETCH_CODES, SKETCH_NEUTRAL))
_MARKS = {
    row: mark for mark, rows in zip("°*'", (r for r, _ in _NOTES), strict=True) for row in rows
}


def label(row: str) -> str:
    if row == PAPER:
        return f"{PAPER} (no record-\nlevel guarantee)"  # two lines: tables are narrow
    return row + _MARKS.get(row, "")


def notes(results: Results) -> list[str]:
    """What the marks say of the rows that are there."""
    return [note for rows, note in _NOTES if any(row in results.rows for row in rows)]


def _table(first: str, columns: Sequence[str]) -> Table:
    """Narrow enough for 80 columns. Without a title: rich would wrap it to the table's width."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _text(found: Summary | None, signed: bool = False, digits: int = 3) -> str:
    if found is None:
        return "-"
    text = f"{found.mean:+.{digits}f}" if signed else f"{found.mean:.{digits}f}"
    return text if found.sd is None else f"{text} ±{found.sd:.{digits}f}"


def _by_epsilon(
    results: Results, rows: Sequence[str], value: Callable[[str, float], Summary | None],
    signed: bool = False,
) -> Table:  # fmt: skip
    table = _table("method", [*(f"ε = {e:g}" for e in results.epsilons), "seeds"])
    for row in rows:
        found = [value(row, epsilon) for epsilon in results.epsilons]
        seeds = max((s.n for s in found if s is not None), default=0)
        table.add_row(label(row), *(_text(s, signed) for s in found), str(seeds))
    return table


def utility(results: Results, measure: str) -> Table:
    """Mean and standard deviation over the seeds that were measured."""
    return _by_epsilon(results, results.rows, lambda row, e: results.summary(row, e, measure))


def differences(results: Results, reference: str) -> Table:
    """Accuracy minus the reference's, mean and standard deviation over common seeds."""
    others = [row for row in results.rows if row != reference]
    return _by_epsilon(results, others, lambda row, e: results.paired(row, reference, e), True)


def fidelity(results: Results, epsilon: float) -> Table | None:
    """Distances to real test records and the attack, at one epsilon; None if not measured."""
    rows = [row for row in results.rows if results.summary(row, epsilon, "mmd") is not None]
    if not rows:
        return None
    table = _table("method", ["MMD²", "precision", "recall", "density", "coverage", "attack AUC"])
    for row in rows:
        found = [results.summary(row, epsilon, measure) for measure in FIDELITY]
        means = [Summary(s.mean, None, s.n) if s else None for s in found]
        table.add_row(
            label(row),
            _text(means[0], digits=4),
            *(_text(s) for s in means[1:-1]),
            _text(found[-1]),
        )
    return table


def domains(results: Results, epsilon: float) -> Table | None:
    """A site's own code against the neutral one, on its test records; None if not measured."""
    table = _table("test records of", ["own code", "neutral", "difference", "seeds"])
    for method, codes, neutral in _BY_CODE:
        found = results.domains(epsilon, codes)
        for site in found:
            shown = (_text(site.own), _text(site.neutral), _text(site.difference, signed=True))
            table.add_row(f"{site.site}, {method}", *shown, str(site.difference.n))
        pooled = results.paired(codes, neutral, epsilon)
        if found and pooled is not None:
            both = (_text(results.summary(row, epsilon)) for row in (codes, neutral))
            table.add_row(f"pooled, {method}", *both, _text(pooled, signed=True), str(pooled.n))
            table.add_section()
    return table if table.row_count else None


def figures(results: Results) -> dict[str, float]:
    """``row@epsilon`` for the mean accuracy, ``row/measure@epsilon`` for all other means."""
    found: dict[str, float] = {}
    for row in results.rows:
        for epsilon in results.epsilons:
            near = FIDELITY if epsilon in FIDELITY_EPSILONS else ()
            for measure in (*UTILITY, *near):
                mean = results.summary(row, epsilon, measure)
                if mean is not None:
                    name = row if measure == "accuracy" else f"{row}/{measure}"
                    found[f"{name}@{epsilon:g}"] = round(mean.mean, 5)
    for method, codes, _ in _BY_CODE:
        for site in results.domains(DOMAIN_EPSILON, codes):
            for name, mean in (("own", site.own), ("neutral", site.neutral)):
                figure = f"{method}-domain/{site.site}/{name}@{DOMAIN_EPSILON:g}"
                found[figure] = round(mean.mean, 5)
    for name in ("seconds", "peak_mib"):
        if name in results.run_cost:
            found[f"run-{name.replace('_', '-')}"] = results.run_cost[name]
    return found
