"""The report as one HTML file: no script, nothing fetched, everything escaped."""

from __future__ import annotations

import math
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from core.privacy.premise import NONE, ONLOOKERS
from core.report import figures, measured_figures, parts
from core.report.report import Report
from core.report.svg import COLOURS, number
from core.report.values import Estimate


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("core.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Ours, and inside <style>, where nothing is unescaped.
    style = (resources.files("core.report") / "pages" / "page.css").read_text()
    made.globals.update(style=Markup(style), number=number, percent=percent, pm=pm)  # noqa: S704
    return made


def rendered(template: str, **values: Any) -> str:
    """A page of this package."""
    return _environment().get_template(template).render(**values)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def pm(one: Estimate | None) -> str:
    """A value with its standard error."""
    return "–" if one is None else f"{number(one.value)} ± {number(one.se, 2)}"


def best_guess(epsilon: float, delta: float) -> float:
    """How often somebody is right at most who guesses whether a given unit was used, if both were
    as likely before: (e^eps + delta) / (1 + e^eps), the most that (eps, delta) allows.
    """
    return min(1.0, 1.0 / (1.0 + math.exp(-epsilon)) + delta / (1.0 + math.exp(epsilon)))


def html(report: Report) -> str:
    """The whole page."""
    privacy = report.privacy
    spent = [one.epsilon for one in privacy.clients]
    highest = max(spent, default=0.0)
    guess = best_guess(highest, privacy.delta)
    seen = {view.who: view for view in privacy.views}
    return rendered(
        "report.html",
        report=report,
        missing=[part for part in report.parts if part.source == "missing"],
        lowest=min(spent, default=0.0),
        highest=highest,
        guess=guess,
        histories=figures.histories(privacy),
        lost=sum(one.lost for one in privacy.clients),
        groups=_groups(report),
        legend=legend(report.space.classes),
        clients=legend(report.synthetic.projection.clients),
        commonest=max(one.value for one in report.released.classes),
        domains=_codes(report),
        ledger={one.client: one.epsilon for one in privacy.clients},
        onlookers=ONLOOKERS,
        premise=seen["booked"].premise if "booked" in seen else NONE,
        guess_of_all=best_guess(seen["everybody"].epsilon, privacy.delta)
        if "everybody" in seen
        else guess,
        figures=figures,
        drawn=measured_figures,
        part={part.title: part for part in report.parts},
        ACCURACY=parts.ACCURACY,
        LIKENESS=parts.LIKENESS,
        ATTACKS=parts.ATTACKS,
    )


def _codes(report: Report) -> list[str]:
    """Clients whose codes' rows were tried on records."""
    if report.measured is None:
        return []
    tried = {name for site in report.measured.sites for name in site.domains}
    return [name for name in report.synthetic.differences.clients if name in tried]


def _groups(report: Report) -> list[tuple[str, int]]:
    """(kind, how many) of the plan's rounds, in order."""
    found: list[tuple[str, int]] = []
    for kind in report.rounds:
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + 1)
        else:
            found.append((kind, 1))
    return found


def legend(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """(style, name) of series; those beyond the palette are one."""
    own = [(figures.style(place), name) for place, name in enumerate(names[:COLOURS])]
    rest = len(names) - len(own)
    return own if rest <= 0 else [*own, ("other", f"{rest} more")]
