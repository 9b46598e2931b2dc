"""Figures of what was measured on records: every mark with two standard errors to either side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from core.report import svg
from core.report.figures import MOST_CLASSES, heat_map, rows, with_names
from core.report.measured import Grid, Measured, Numbers, Site
from core.report.svg import Plot, Range, number
from core.report.values import Estimate

ALL = "all sites"
_MOST_SITES = 24

Series = tuple[str, str, Sequence[Estimate | None]]  # name, style, one estimate a row


def dots(
    title: str,
    description: str,
    names: Sequence[str],
    series: Sequence[Series],
    label: str,
    *,
    rule: tuple[float, str] | None = None,
    within: tuple[float, float] | None = None,
) -> Markup:
    """One row for each name, in it one dot with an error bar for each series; ``rule``: a value to
    compare with; ``within``: the ends of what can be, beyond which error bars are cut.
    """
    widest = math.inf if within is None else (within[1] - within[0]) / 2
    given = [one for _, _, estimates in series for one in estimates if one is not None]
    shown = [one for one in given if one.se < widest]
    ends = [one.value + side * 2 * one.se for one in shown for side in (-1, 1)]
    if within is not None:
        ends = [min(max(end, within[0]), within[1]) for end in ends]
    plot = rows(
        title,
        description,
        names,
        Range.around([*ends, *([rule[0]] if rule else [])]),
        label,
        head=0.7 if rule is not None else 0.0,
    )
    if rule is not None:
        plot.rule(rule[0], rule[1], across=False)
    for place, (_, style, estimates) in enumerate(series):
        shift = 0.16 * (len(series) - 1 - 2 * place)
        for row, one in enumerate(estimates):
            if one is None:
                continue
            y = len(names) - 1 - row + shift
            if one.se >= widest:
                plot.note(plot.x.low, y, " too noisy to tell", drop=4.0)
                continue
            low, high = one.value - 2 * one.se, one.value + 2 * one.se
            plot.error(max(low, plot.x.low), min(high, plot.x.high), y)
            middle = min(max(one.value, plot.x.low), plot.x.high)
            plot.dot(middle, y, style, size=4.0, title=f"{names[row]}: {number(one.value)}")
    return with_names(plot, names)


def _sites(found: Measured) -> list[Site]:
    return [found.pooled, *found.sites[:_MOST_SITES]]


def _names(found: Measured) -> list[str]:
    return [one.client or ALL for one in _sites(found)]


def accuracy(found: Measured, most_frequent: float) -> Markup:
    """TSTR accuracy by site; ``most_frequent``: the share of the most frequent class."""
    return dots(
        "Accuracy on real held-out records",
        "Share of right answers on real records of a classifier that saw only synthetic rows.",
        _names(found),
        [("", "c0", [one.accuracy for one in _sites(found)])],
        "share of right answers",
        rule=(most_frequent, "always the commonest class"),
        within=(0.0, 1.0),
    )


def recall(found: Measured, classes: Sequence[str]) -> Markup:
    return dots(
        "Right answers within each class",
        "Share of right answers among real records of each class, all sites together.",
        classes[:MOST_CLASSES],
        [("", "c2", found.pooled.recall[:MOST_CLASSES])],
        "share of right answers",
        within=(0.0, 1.0),
    )


def confusion(grid: Grid, classes: Sequence[str]) -> Markup:
    """Of each true class, the shares of predicted classes."""
    shares = []
    for row in grid.values:
        kept = [max(0.0, value) for value in row]
        total = sum(kept)
        shares.append([value / total if total > 0 else 0.0 for value in kept])
    return heat_map(
        "True and predicted classes",
        "Rows are true classes of real records, columns what the classifier said; each row sums "
        "to 1.",
        classes,
        classes,
        shares,
        1.0,
    )


def domains(found: Measured, codes: Sequence[str]) -> Markup:
    """Rows: whose code made the training rows; columns: whose real records were tried."""
    sites = [one for one in found.sites[:_MOST_SITES] if one.domains]
    values = [[_clipped(one.domains.get(code)) for one in sites] for code in codes]
    lowest = min((value for row in values for value in row), default=0.0)
    highest = max((value for row in values for value in row), default=1.0)
    return heat_map(
        "Accuracy with one site's rows on another's records",
        "Rows: the site whose code made the synthetic rows that the classifier saw. Columns: the "
        "site on whose real records it was tried.",
        codes,
        [one.client for one in sites],
        values,
        highest,
        lowest,
    )


def _clipped(one: Estimate | None) -> float:
    return 0.0 if one is None else min(1.0, max(0.0, one.value))


def mmd(found: Measured) -> Markup:
    return dots(
        "Distance between real and synthetic records",
        "Squared maximum mean discrepancy; 0 is no difference.",
        _names(found),
        [("", "c4", [one.mmd2 for one in _sites(found)])],
        "MMD² (0: no difference)",
        rule=(0.0, "no difference"),
    )


def overlap(found: Measured) -> Markup:
    sites = _sites(found)
    return dots(
        "Recall and coverage",
        "Share of real records that lie among synthetic ones, and share of synthetic rows that lie "
        "where real records are.",
        _names(found),
        [
            ("recall", "c2", [one.inside for one in sites]),
            ("coverage", "c1", [one.coverage for one in sites]),
        ],
        "share",
        within=(0.0, 1.0),
    )


def attack(found: Measured) -> Markup:
    return dots(
        "Membership attack",
        "Area under the curve of an attack by distance; 0.5 is guessing.",
        _names(found),
        [("", "c5", [one.attack_auc for one in _sites(found)])],
        "AUC (0.5: the attacker guesses)",
        rule=(0.5, "guessing"),
        within=(0.0, 1.0),
    )


def closer(found: Measured) -> Markup:
    sites = _sites(found)
    return dots(
        "Very near synthetic rows",
        "Share of real records that have a synthetic row nearer than 95 % of synthetic rows are to "
        "each other, of those that were held out and of those that were used.",
        _names(found),
        [
            ("held out", "c0", [one.closer for one in sites]),
            ("used", "c5", [one.closer_members for one in sites]),
        ],
        "share of records",
        rule=(0.05, "as synthetic rows"),
        within=(0.0, 1.0),
    )


def ratio(found: Measured) -> Markup:
    sites = _sites(found)
    return dots(
        "Nearest-neighbour ratio",
        "Median of the distance to the nearest synthetic row over that to the next one. Near 1: no "
        "row is special.",
        _names(found),
        [
            ("held out", "c0", [one.median_ratio for one in sites]),
            ("used", "c5", [one.median_ratio_members for one in sites]),
        ],
        "median of d1 / d2",
        within=(0.0, 1.0),
    )


def distances(found: Measured) -> Markup:
    """Cumulative shares by distance to the nearest synthetic row, all sites together."""
    pooled, edges = found.pooled, found.distance_thresholds
    plot = Plot(
        title="Distance to the nearest synthetic row",
        description="Share of rows or records with a synthetic row within a distance: synthetic "
        "rows among themselves, held-out records, and records that were used.",
        x=Range.around(edges, room=0.04),
        y=Range(-0.04, 1.06),
        x_label="distance of directions",
        y_label="share within",
    )
    lines: list[tuple[str, Numbers, Numbers]] = [("other", found.synthetic_nearest, ())]
    for style, shares in (("c0", pooled.nearest), ("c5", pooled.nearest_members)):
        if shares is not None:
            lines.append((style, shares.values, shares.se))
    for style, values, errors in lines:
        within = np.cumsum(values)[: len(edges)]
        # Bins share no noise; that they share units is on the safe side.
        error = (
            2.0 * np.sqrt(np.cumsum(np.square(errors))[: len(edges)]) if errors else 0.0 * within
        )
        low, middle, high = (np.clip(within + side * error, 0.0, 1.0) for side in (-1, 0, 1))
        if errors:
            plot.band(_points(edges, low), _points(edges, high), style)
        plot.line(_points(edges, middle), style)
        for x, y in _points(edges, middle):
            plot.dot(x, y, style)
    return plot.svg()


def _points(x: Numbers, y: NDArray[np.float64]) -> list[tuple[float, float]]:
    return list(zip(x, y.tolist(), strict=True))


def maps(found: Measured) -> Markup:
    """Synthetic rows and held-out records over the same cells, side by side; of the latter those
    cells that stand two standard errors above 0.
    """
    side, gap, top = 172.0, 20.0, 24.0
    grid = None if found.pooled.map is None else _above_noise(found.pooled.map)
    marks: list[Markup] = []
    for place, (name, values) in enumerate(
        [("synthetic rows", found.synthetic_map)]
        + ([("held-out records", grid)] if grid is not None else [])
    ):
        left = 8.0 + place * (side + gap)
        highest = max((value for row in values for value in row), default=0.0) or 1.0
        cell = side / max(len(values), 1)
        marks.append(svg.text(left + side / 2, 16.0, name, "axis"))
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                share = min(1.0, max(0.0, value / highest))
                x, y = left + cell * i, top + side - cell * (j + 1)
                opacity = 0.04 + 0.96 * share
                marks.append(svg.rect(x, y, cell - 0.6, cell - 0.6, "heat", fill_opacity=opacity))
    return svg.picture(
        "Where synthetic rows and held-out records lie",
        "The same public plane in cells; stronger cells hold a larger share.",
        top + side + 8,
        marks,
    )


def _above_noise(grid: Grid) -> list[list[float]]:
    return [
        [value if value > 2 * se else 0.0 for value, se in zip(values, errors, strict=True)]
        for values, errors in zip(grid.values, grid.se, strict=True)
    ]


def typical_error(estimates: Sequence[Estimate | None]) -> float:
    """The median of the standard errors that are known; 0 if none is."""
    known = [one.se for one in estimates if one is not None]
    return float(np.median(known)) if known else 0.0


def domain_error(found: Measured) -> float:
    return typical_error([one for site in found.sites for one in site.domains.values()])


def is_confusion_clear(grid: Grid) -> bool:
    """Do the counts of each class stand above their noise?"""
    totals = np.sum(grid.values, axis=1)
    errors = np.sqrt(np.sum(np.square(grid.se), axis=1))
    return bool((totals > 2 * errors).all())
