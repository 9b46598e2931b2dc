"""Percentiles and straight lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all values do not exceed; nan of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Line:
    """y = intercept + slope x by least squares; ``r2`` is the explained share of the variance."""

    intercept: float
    slope: float
    r2: float

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Through at least two different x. Raises ``ValueError`` for fewer."""
    if len(x) != len(y) or len(set(x)) < 2:
        raise ValueError("a line needs two points with different x")
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    slope, intercept = np.polyfit(xs, ys, 1)
    rest = float(np.sum((ys - intercept - slope * xs) ** 2))
    whole = float(np.sum((ys - ys.mean()) ** 2))
    return Line(float(intercept), float(slope), 1.0 - rest / whole if whole > 0.0 else 1.0)
