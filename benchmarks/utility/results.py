"""Reading finished cells: rows of the tables, values by seed, paired differences.

Any cell may be missing; what is not measured is no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.utility.plan import (
    CODES,
    LINEAR,
    NOT_PRIVATE,
    OUR_ROWS,
    PAPER,
    RATED_ROWS,
    RUN_COST,
    SYNTHETIC_BASELINES,
    Job,
    key,
)
from benchmarks.utility.store import Cells
from core.federation.rule import NoiseMode

ORDER = (*NOT_PRIVATE, LINEAR, *SYNTHETIC_BASELINES, PAPER, *OUR_ROWS)


@dataclass(frozen=True)
class Summary:
    """Mean and, from two seeds on, standard deviation over ``n`` seeds."""

    mean: float
    sd: float | None
    n: int


def summary(values: Sequence[float]) -> Summary | None:
    """None without values."""
    if not values:
        return None
    return Summary(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Domain:
    """TSTR on one site's test records: from its own code, from the neutral one, and paired."""

    site: str
    own: Summary
    neutral: Summary
    difference: Summary


class Results:
    """The cells of ``jobs`` that are there."""

    def __init__(self, cells: Cells, jobs: Sequence[Job], noise: NoiseMode) -> None:
        self._cells: dict[tuple[str, float | None], dict[int, dict[str, Any]]] = {}
        for job in jobs:
            for row in job.rows(noise):
                cell = cells.get(key(row, job.epsilon, job.seed))
                if cell is not None:
                    self._cells.setdefault((row, job.epsilon), {})[job.seed] = cell
        found = {row for row, _ in self._cells}
        self.rows = [r for r in ORDER if r in found or (r == LINEAR and found & set(RATED_ROWS))]
        self.epsilons = sorted({job.epsilon for job in jobs if job.epsilon is not None})
        self.run_cost: Mapping[str, float] = cells.get(RUN_COST, {})

    def cells(self, row: str, epsilon: float) -> dict[int, dict[str, Any]]:
        """By seed. Of the learning rates of a method: the one with the best mean accuracy."""
        if row in NOT_PRIVATE:
            return self._cells.get((row, None), {})
        if row != LINEAR:
            return self._cells.get((row, epsilon), {})
        rates = [self._cells.get((rated, epsilon), {}) for rated in RATED_ROWS]
        return max(
            rates, key=lambda by: fmean([c["accuracy"] for c in by.values()]) if by else -1.0
        )

    def values(self, row: str, epsilon: float, measure: str) -> dict[int, float]:
        """By seed; only the seeds at which the measure was taken."""
        found = self.cells(row, epsilon)
        return {seed: cell[measure] for seed, cell in found.items() if measure in cell}

    def summary(self, row: str, epsilon: float, measure: str = "accuracy") -> Summary | None:
        return summary(list(self.values(row, epsilon, measure).values()))

    def paired(self, row: str, other: str, epsilon: float) -> Summary | None:
        """Accuracy of ``row`` minus that of ``other`` on the seeds, hence splits, of both."""
        own, theirs = (self.values(r, epsilon, "accuracy") for r in (row, other))
        return summary([own[seed] - theirs[seed] for seed in sorted(own.keys() & theirs.keys())])

    def domains(self, epsilon: float, row: str = CODES) -> list[Domain]:
        """Of each site with test records, over the seeds at which both codes were scored on them.

        ``row``: the one of all codes. Empty where the data name no domains.
        """
        cells = self.cells(row, epsilon)
        checks = [cells[seed]["domains"] for seed in sorted(cells) if "domains" in cells[seed]]
        found = []
        for place, site in enumerate(checks[0]["sites"] if checks else ()):
            pairs = [(c["own"][place], c["neutral"][place]) for c in checks]
            pairs = [(own, neutral) for own, neutral in pairs if own is not None]
            own, neutral = summary([o for o, _ in pairs]), summary([n for _, n in pairs])
            difference = summary([o - n for o, n in pairs])
            if own is not None and neutral is not None and difference is not None:
                found.append(Domain(site, own, neutral, difference))
        return found
