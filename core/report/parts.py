"""Where each part of a report comes from, what it has cost, and what is missing, and why."""

from __future__ import annotations

from core.federation.plan import RunSpec
from core.report.report import Part

ACCURACY = "Accuracy on real records"
LIKENESS = "Likeness to real records"
ATTACKS = "Attacks with held-out records"
_LOCAL = "fedhypevae agent report"


def parts(spec: RunSpec, is_measured: bool) -> tuple[Part, ...]:
    """``is_measured``: a report round is in the model."""
    return (
        Part(
            title="Privacy spent",
            source="ledger",
            price="nothing: recomputed from the reservations that the ledger holds",
        ),
        Part(title="Who took part", source="public", price="nothing: no record is behind it"),
        Part(
            title="Shares of classes and units of sites",
            source="released with noise",
            price=f"the sketch round: one Gaussian release of each site with noise multiplier "
            f"{spec.event(0).noise_multiplier:.3g}, within the ε above",
        ),
        Part(
            title="Labels, pictures and differences of synthetic rows",
            source="post-processing",
            price="nothing: made from the published model alone",
            why="They show what the model makes, not whether that is like the records.",
        ),
        *(_of_records(spec, title, is_measured) for title in (ACCURACY, LIKENESS, ATTACKS)),
        Part(
            title="Neighbours and pictures of real records",
            source="missing",
            price="not for sale: no noise leaves them both useful and private",
            why=f"A site sees them for itself in a file that never leaves it ('{_LOCAL}').",
        ),
    )


def _of_records(spec: RunSpec, title: str, is_measured: bool) -> Part:
    number = spec.report_round
    if is_measured and number is not None:
        return Part(
            title=title,
            source="released with noise",
            price=f"the report round: one Gaussian release of each site with noise multiplier "
            f"{spec.event(number).noise_multiplier:.3g}, within the ε above",
            why="Error bars are two standard errors of noise and sampling. "
            "Measured on units that were held out of everything else.",
        )
    why = (
        "It needs the sites' records, and this run's plan set no budget aside for it. Nothing was "
        "measured on any record, so nothing can be said."
    )
    if number is not None:
        why = (
            f"The plan sets budget aside for it, in round {number}, and this model has no "
            "measurement in it: that round is not published (yet)."
        )
    return Part(title=title, source="missing", price="a share of the privacy budget", why=why)
