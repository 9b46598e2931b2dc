"""The site's own report as one HTML file. NOT PRIVATE; see ``core.report.local``."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from core.federation.plan import RunSpec
from core.report.figures import MOST_CLASSES, heat_map, style
from core.report.local import LEAST_HELD_OUT, STAMP, Copies, Local
from core.report.measured_figures import dots
from core.report.page import legend, rendered
from core.report.svg import Plot, Range
from core.report.values import Estimate


def html(local: Local, spec: RunSpec, run: str, round_number: int) -> str:
    """The whole page."""
    names = spec.space.classes
    return rendered(
        "local.html",
        local=local,
        stamp=STAMP,
        least=LEAST_HELD_OUT,
        run=run,
        round=round_number,
        classes=names,
        accuracy=_accuracy(local),
        recall=_recall(local, names),
        likeness=None if local.prdc is None else _likeness(local),
        shares=_shares(local, names),
        picture=_picture(local),
        legend=legend(names),
        copies=_copies(local),
        attack=None if local.attack is None else _attack(local),
    )


def _accuracy(local: Local) -> Markup:
    counts = local.class_counts
    return dots(
        "Accuracy on this site's records",
        "Share of right answers of a classifier that saw only synthetic rows.",
        list(local.accuracy),
        [("", "c0", list(local.accuracy.values()))],
        "share of right answers",
        rule=(float(counts.max() / counts.sum()), "always the commonest class"),
        within=(0.0, 1.0),
    )


def _recall(local: Local, names: Sequence[str]) -> Markup:
    return dots(
        "Right answers within each class",
        "Share of right answers among this site's records of each class.",
        names[:MOST_CLASSES],
        [("", "c2", local.recall[:MOST_CLASSES])],
        "share of right answers",
        within=(0.0, 1.0),
    )


def _likeness(local: Local) -> Markup:
    found = local.prdc
    if found is None:
        raise ValueError("there were too few records to compare")
    values = [[found.precision, found.recall, min(found.density, 1.0), found.coverage]]
    columns = ["precision", "recall", "density", "coverage"]
    return heat_map(
        "Likeness by neighbours",
        "Precision, recall, density and coverage with the radii of real records; 1 is best. "
        "Density is shown as 1 where it is more.",
        ["share"],
        columns,
        values,
        1.0,
    )


def _shares(local: Local, names: Sequence[str]) -> Markup:
    shown = names[:MOST_CLASSES]
    real = local.class_counts / local.class_counts.sum()
    made = local.synthetic_counts / local.synthetic_counts.sum()

    def exact(values: Sequence[float]) -> list[Estimate | None]:
        return [Estimate(value=float(value), se=0.0) for value in values]

    return dots(
        "Share of each class",
        "Shares among this site's records and among synthetic rows.",
        shown,
        [
            ("records", "ink", exact(real[: len(shown)].tolist())),
            ("synthetic", "c1", exact(made[: len(shown)].tolist())),
        ],
        "share",
        within=(0.0, 1.0),
    )


def _picture(local: Local) -> tuple[Markup, Markup]:
    """Real records, and synthetic rows, in one plane on one scale."""
    found = local.picture
    both = [*found.real.tolist(), *found.synthetic.tolist()]
    first, second = (f"{100 * share:.0f} %" for share in found.explained)
    drawn = []
    for title, places, labels in (
        ("Real records", found.real, found.real_labels),
        ("Synthetic rows", found.synthetic, found.synthetic_labels),
    ):
        plot = Plot(
            title=title,
            description=f"{title} in the plane in which both spread most, coloured by class.",
            x=Range.around([place[0] for place in both]),
            y=Range.around([place[1] for place in both]),
            x_label=f"first axis ({first} of the variance)",
            y_label=f"second axis ({second})",
            height=300,
        )
        for (x, y), label in zip(places.tolist(), labels.tolist(), strict=True):
            plot.dot(x, y, style(label))
        drawn.append(plot.svg())
    return drawn[0], drawn[1]


def _copies(local: Local) -> Markup:
    def closer(one: Copies | None) -> Estimate | None:
        return None if one is None else one.closer

    return dots(
        "Very near synthetic rows",
        "Share of records with a synthetic row nearer than 95 % of synthetic rows are to each "
        "other.",
        ["used", "held out"],
        [("", "c5", [closer(local.copies_members), closer(local.copies_held_out)])],
        "share of records",
        rule=(0.05, "as synthetic rows"),
        within=(0.0, 1.0),
    )


def _attack(local: Local) -> Markup:
    found = local.attack
    if found is None:
        raise ValueError("there were no held-out records to attack with")
    return dots(
        "Membership attack",
        "Area under the curve of an attack by distance, with two standard deviations of chance.",
        [local.client],
        [("", "c5", [Estimate(value=found.auc, se=found.null_sd)])],
        "AUC (0.5: the attacker guesses)",
        rule=(0.5, "guessing"),
        within=(0.0, 1.0),
    )
