"""Reading finished cells: accuracies, paired differences, and what a part is worth in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.ablation.variants import DEFAULT, VARIANTS, Run
from benchmarks.last_line import Target, at_least
from benchmarks.utility.results import Summary, summary
from benchmarks.utility.store import Cells

# A difference below so many standard errors is said to be within noise.
_ERRORS = 2.0
_DEFAULT_LOSES = 0.01  # at most, to any alternative under the same terms


@dataclass(frozen=True)
class Difference:
    """Mean over common seeds and, from two on, its standard error."""

    mean: float
    error: float | None


class Results:
    """The cells of ``runs`` that are there."""

    def __init__(self, cells: Cells, runs: Sequence[Run]) -> None:
        self._found: dict[tuple[str, float], dict[int, float]] = {}
        for run in runs:
            if run.name in cells:
                by_seed = self._found.setdefault((run.variant, run.epsilon), {})
                by_seed[run.seed] = cells[run.name]["accuracy"]
        self.variants = [name for name in VARIANTS if any(name == v for v, _ in self._found)]
        self.epsilons = sorted({epsilon for _, epsilon in self._found})

    def accuracy(self, name: str, epsilon: float) -> Summary | None:
        return summary(list(self._found.get((name, epsilon), {}).values()))

    def difference(self, name: str, epsilon: float, base: str = DEFAULT) -> Difference | None:
        """Accuracy minus that of ``base``, on the same splits with the same noise."""
        own, other = (self._found.get((n, epsilon), {}) for n in (name, base))
        found = summary([own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())])
        if found is None:
            return None
        return Difference(found.mean, None if found.sd is None else found.sd / math.sqrt(found.n))

    def typical_error(self, epsilon: float) -> float | None:
        """Median of the rows' standard errors: that of one row, from two seeds, is itself noise."""
        found = [self.difference(name, epsilon) for name in self.variants if name != DEFAULT]
        errors = [one.error for one in found if one is not None and one.error is not None]
        return median(errors) if errors else None

    def worth(self, name: str) -> str:
        """One plain sentence; empty for the default and where there is nothing to compare."""
        variant = VARIANTS[name]
        said = []
        for epsilon in self.epsilons:
            found = self.difference(name, epsilon, variant.base)
            if found is not None and name != DEFAULT:
                said.append(self._said(found, epsilon, variant.removes))
        subject = variant.part
        if "." not in subject.split()[0]:  # a plan's field keeps its name
            subject = subject[:1].upper() + subject[1:]
        return f"{subject}: {', '.join(said)}." if said else ""

    def _said(self, found: Difference, epsilon: float, removes: bool) -> str:
        points = f"{100 * (-found.mean if removes else found.mean) + 0.0:+.1f}"
        typical = self.typical_error(epsilon)
        if found.error is None or typical is None:
            return f"{points} points at ε = {epsilon:g} on a single seed"
        if abs(found.mean) < _ERRORS * max(found.error, typical):
            return f"within noise at ε = {epsilon:g} ({points})"
        return f"worth {points} points at ε = {epsilon:g}"


def figures(results: Results) -> dict[str, float]:
    """``ROW@epsilon`` for the mean accuracy, ``ROW-minus-default@epsilon`` and its ``-error``."""
    made = {}
    for name in results.variants:
        for epsilon in results.epsilons:
            mean, found = results.accuracy(name, epsilon), results.difference(name, epsilon)
            if mean is not None:
                made[f"{name}@{epsilon:g}"] = round(mean.mean, 5)
            if found is not None and name != DEFAULT:
                made[f"{name}-minus-default@{epsilon:g}"] = round(found.mean, 5)
                if found.error is not None:
                    made[f"{name}-minus-default-error@{epsilon:g}"] = round(found.error, 5)
    return made


def targets(results: Results) -> dict[str, Target]:
    """At each epsilon: the default against the alternative that beats it most, same terms."""
    made = {}
    for epsilon in results.epsilons:
        found = [
            results.difference(name, epsilon)
            for name in results.variants
            if name != DEFAULT and not VARIANTS[name].terms
        ]
        gaps = [0.0 - one.mean for one in found if one is not None]
        if gaps:
            name = f"default-minus-best-alternative@{epsilon:g}"
            made[name] = at_least(min(gaps), -_DEFAULT_LOSES)
    return made
