"""The figures of the report's data-free parts. Each says in words what it shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from core.report import svg
from core.report.report import Differences, Privacy, Projection, Released, Synthetic
from core.report.svg import COLOURS, Plot, Range, number, shortened

MOST_CLASSES = 20
_MOST_ROWS = 24
_ROW_HEIGHT = 22
_TURN = 0.64  # from here on, white on a cell is easier to read than black (dark: vice versa)


def style(place: int) -> str:
    """The palette's colour of a series; those beyond it share grey."""
    return f"c{place}" if 0 <= place < COLOURS else "other"


def spending(privacy: Privacy) -> Markup:
    """Epsilon over the rounds, one line for all clients with the same history."""
    groups: dict[tuple[tuple[int, float], ...], list[str]] = defaultdict(list)
    for one in privacy.clients:
        if one.curve:
            groups[tuple((p.round, p.epsilon) for p in one.curve)].append(one.client)
    last = max((p.round for one in privacy.clients for p in one.curve), default=1)
    highest = max([privacy.epsilon_target, *(one.epsilon for one in privacy.clients)])
    plot = Plot(
        title="Privacy spent over the rounds",
        description="Epsilon at the plan's delta after each round, one line for each history. "
        "The dashed line is what the plan promises.",
        x=Range(-0.5, max(last, 1) + 0.5),
        y=Range(0.0, 1.16 * highest),
        x_label="round",
        y_label="ε spent so far",
    )
    plot.rule(privacy.epsilon_target, f"promised: ε = {number(privacy.epsilon_target)}")
    for place, (points, _) in enumerate(groups.items()):
        start = (-0.5, 0.0)
        plot.steps([start, *points, (last + 0.5, points[-1][1])], style(place))
        for number_, epsilon in points:
            plot.dot(number_, epsilon, style(place), title=f"round {number_}: {number(epsilon)}")
    whole = [(t, number(t)) for t in plot.x.ticks() if t == int(t)]
    return plot.svg(x_ticks=whole)


def histories(privacy: Privacy) -> list[tuple[str, str]]:
    """(style, clients in words) of the lines of ``spending``, in its order."""
    groups: dict[tuple[tuple[int, float], ...], list[str]] = defaultdict(list)
    for one in privacy.clients:
        if one.curve:
            groups[tuple((p.round, p.epsilon) for p in one.curve)].append(one.client)
    return [(style(place), _some(clients)) for place, clients in enumerate(groups.values())]


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def class_shares(released: Released, synthetic: Synthetic, classes: Sequence[str]) -> Markup:
    """Shares of classes: bars of synthetic rows, released shares with their error bars."""
    shown = list(range(min(len(classes), MOST_CLASSES)))
    ends = [e.value + 2 * e.se for e in released.classes] + list(synthetic.balance.shares)
    plot = rows(
        "Share of each class",
        "Bars: shares among synthetic rows. Dots with error bars: shares among the sites' units as "
        "they were released, with two standard errors of the noise to either side.",
        [classes[place] for place in shown],
        Range.around(ends, zero=True),
        "share of all units or rows",
    )
    for row, place in enumerate(shown):
        estimate, y = released.classes[place], len(shown) - 1 - row
        plot.bar(0.0, synthetic.balance.shares[place], y, "c1")
        plot.error(max(0.0, estimate.value - 2 * estimate.se), estimate.value + 2 * estimate.se, y)
        plot.dot(estimate.value, y, "ink", size=3.2)
    return with_names(plot, [classes[place] for place in shown])


def sizes(released: Released) -> Markup:
    """Units of each client as released, with error bars."""
    shown = released.sizes[:_MOST_ROWS]
    ends = [one.units.value + 2 * one.units.se for one in shown]
    plot = rows(
        "Units of each site",
        "Released number of units with two standard errors of the noise to either side.",
        [one.client for one in shown],
        Range.around([*ends, released.floor], zero=True),
        "units (noised)",
    )
    for row, one in enumerate(shown):
        y = len(shown) - 1 - row
        low, high = one.units.value - 2 * one.units.se, one.units.value + 2 * one.units.se
        plot.error(max(0.0, low), high, y)
        plot.dot(one.units.value, y, "c0", size=4.0)
    return with_names(plot, [one.client for one in shown])


def rows(
    title: str,
    description: str,
    names: Sequence[str],
    across: Range,
    label: str,
    *,
    head: float = 0.0,
) -> Plot:
    """A plot with one row for each name, the first one on top; ``head``: more rows above it."""
    longest = max((len(shortened(name)) for name in names), default=0)
    count = max(len(names), 1)
    return Plot(
        title=title,
        description=description,
        x=across,
        y=Range(-0.6, count - 0.4 + head),
        x_label=label,
        y_label="",
        height=round(56 + _ROW_HEIGHT * (count + head)),
        left=max(34, 14 + round(6.4 * longest)),
    )


def with_names(plot: Plot, names: Sequence[str]) -> Markup:
    ticks = [(float(len(names) - 1 - row), shortened(name)) for row, name in enumerate(names)]
    return plot.svg(y_ticks=ticks)


def by_class(projection: Projection) -> Markup:
    """Rows of the neutral code in the plane, coloured by class."""
    plot = _plane(
        projection,
        "Synthetic rows by class",
        "Each dot is one synthetic row of the neutral code, coloured by its class.",
    )
    for point in projection.points:
        if point.client < 0:
            plot.dot(point.x, point.y, style(point.label))
    return plot.svg()


def by_client(projection: Projection) -> Markup:
    """Rows of clients' codes in the same plane, coloured by client; the neutral ones behind."""
    plot = _plane(
        projection,
        "Synthetic rows by site",
        "Coloured dots are synthetic rows under one site's code; pale dots are of the neutral one.",
    )
    for point in projection.points:
        if point.client < 0:
            plot.dot(point.x, point.y, "pale")
    for point in projection.points:
        if point.client >= 0:
            plot.dot(point.x, point.y, style(point.client))
    return plot.svg()


def _plane(projection: Projection, title: str, description: str) -> Plot:
    first, second = (f"{100 * share:.0f} %" for share in projection.explained)
    return Plot(
        title=title,
        description=description,
        x=Range.around([p.x for p in projection.points]),
        y=Range.around([p.y for p in projection.points]),
        x_label=f"first axis ({first} of the rows' variance)",
        y_label=f"second axis ({second})",
        height=300,
    )


def heat_map(
    title: str,
    description: str,
    down: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    highest: float,
    lowest: float = 0.0,
) -> Markup:
    """A matrix with its numbers in it; from the palest at ``lowest`` to the darkest."""
    longest = max(len(shortened(name, 12)) for name in down)
    left, top = 14 + 6.4 * longest, 24.0
    width = (svg.WIDTH - left - 8) / len(columns)
    height = min(30.0, max(22.0, width * 0.6))
    marks: list[Markup] = []
    for column, name in enumerate(columns):
        room = max(3, int(width / 6.6))
        middle = left + width * (column + 0.5)
        marks.append(svg.text(middle, top - 7, shortened(name, room), "tick"))
    for row, name in enumerate(down):
        y = top + height * row
        marks.append(svg.text(left - 6, y + height / 2 + 4, shortened(name, 12), "tick", "end"))
        for column, value in enumerate(values[row]):
            span = highest - lowest
            share = float(np.clip((value - lowest) / span, 0.0, 1.0)) if span > 0 else 0.0
            opacity = round(0.06 + 0.94 * share, 2)
            x = left + width * column
            marks.append(
                svg.rect(x + 1, y + 1, width - 2, height - 2, "heat", fill_opacity=opacity)
            )
            if width >= 26:
                ink = "on-dark" if opacity > _TURN else "on-light"
                middle = x + width / 2
                marks.append(svg.text(middle, y + height / 2 + 4, f"{value:.2f}", f"cell {ink}"))
    return svg.picture(title, description, top + height * len(down) + 6, marks)


def differences(found: Differences) -> Markup:
    return heat_map(
        "How far sites' generators are apart",
        "Distance of the class means under the codes of two sites; 1 is the typical distance of "
        "two classes.",
        found.clients,
        found.clients,
        found.values,
        max((v for row in found.values for v in row), default=1.0),
    )


def bounds(upper: float, lower: float | None, target: float) -> Markup:
    """The ledger's upper bound of epsilon and what an attack has proved, on one scale."""
    plot = rows(
        "What is guaranteed and what an attack has shown",
        "The upper bar is the ledger's upper bound of epsilon, the lower one the lower bound that "
        "an attack has shown. The truth lies between them.",
        ["guaranteed", "attack"],
        Range.around([upper, target, lower or 0.0], zero=True),
        "ε (smaller is more private)",
    )
    plot.bar(0.0, upper, 1.0, "c0", 13.0)
    if lower is not None:
        plot.bar(0.0, lower, 0.0, "c1", 13.0)
    else:
        plot.note(0.02 * plot.x.high, 0.0, "not measured", drop=4.0)
    return with_names(plot, ["guaranteed", "attack"])
