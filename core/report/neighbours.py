"""Synthetic rows, and where records lie among them. Every answer is of one record by itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.evaluation.distance import squared_distances, unit_rows
from core.federation.plan import RunSpec
from core.report import exact
from core.report.blocks import CELLS
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator

Vector = NDArray[np.float64]

MOST_ROWS = 4_000  # synthetic rows that records are compared with
_MOST_ENTRIES = 16_000_000  # of all of them: 128 MB, in whatever space
_NEIGHBOUR = 5  # whose distance is the radius of a synthetic row's ball in the manifold


def row_count(spec: RunSpec) -> int:
    """How many synthetic rows records are compared with: 4,000 up to as many dimensions."""
    return min(MOST_ROWS, _MOST_ENTRIES // spec.space.dim)


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Directions [n, d] of neutral synthetic rows, and where records lie among them."""

    directions: Vector

    @classmethod
    def of(cls, generator: Generator) -> Synthetic:
        """The same rows everywhere, but for rounding. Raises ``ValueError`` for rows without a
        direction, ``numpy.linalg.LinAlgError`` for a spread that is none.
        """
        request = SynthesisRequest(run=generator.spec.run_id, n=row_count(generator.spec))
        return cls(unit_rows(generator.sample(request, generator.spec.plan.seed).x))

    @cached_property
    def radii(self) -> Vector:
        """[n] distance from each row to its fifth nearest other one."""
        return _smallest(self.directions, self.directions, _NEIGHBOUR + 1)[:, _NEIGHBOUR]

    def two_nearest(self, directions: Vector) -> Vector:
        """[m, 2] distances to the nearest and to the next row, from directions [m, d]."""
        return exact.two_nearest(directions, self.directions)

    def two_nearest_others(self) -> Vector:
        """[n, 2] of each row to the others."""
        return _smallest(self.directions, self.directions, 3)[:, 1:]

    def inside(self, directions: Vector) -> NDArray[np.bool_]:
        """[m] within the ball of any row, whose radius its own neighbours give."""
        return exact.inside(directions, self.directions, self.radii)


def _smallest(rows: Vector, others: Vector, count: int) -> Vector:
    """[n, count] the smallest distances from each of ``rows``, ascending."""
    found = np.empty((len(rows), count))
    for part, squared in squared_distances(rows, others):
        found[part] = np.sqrt(np.sort(np.partition(squared, count - 1, axis=1)[:, :count], axis=1))
    return found


def ratios(two: Vector) -> Vector:
    """[n] d1 / d2 of distances [n, 2]; 1 where both are 0."""
    safe = np.where(two[:, 1] > 0, two[:, 1], 1.0)
    return np.asarray(np.where(two[:, 1] > 0, two[:, 0] / safe, 1.0))


def bins(values: Vector, thresholds: Vector) -> NDArray[np.int64]:
    """[n] i where thresholds[i - 1] <= value < thresholds[i]."""
    return np.asarray(np.searchsorted(thresholds, values, side="right"), np.int64)


def cells(directions: Vector, axes: Vector, edges: Vector) -> NDArray[np.int64]:
    """[n] cell of the map, row by row; what lies beyond the edges is in the outermost cells."""
    first, second = (
        np.clip(bins(exact.dot(directions, axis), edge) - 1, 0, CELLS - 1)
        for axis, edge in zip(axes, edges, strict=True)
    )
    return np.asarray(CELLS * first + second, np.int64)
