"""What the report round released, read: estimates per site and pooled, with standard errors.

Post-processing of released values: free, and computed from the run's specification and the weights
file alone. Numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """``se``: one standard error, of the known noise and of the sampling of units together."""

    value: float
    se: float


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares of units, of any shape, with their standard errors. Unbiased, so noise may make some
    negative: clip for display only. Bin i of a histogram is [threshold i - 1, threshold i).
    """

    values: Vector
    se: Vector


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """One site's figures, or all sites' together (``client`` is then "").

    All are of held-out units, which the generator never saw, unless their name says ``members``:
    those that it was trained on. A unit of several records counts by the mean over them.
    """

    client: str
    held_out: Estimate  # how many units
    members: Estimate
    accuracy: Estimate  # of the classifier that was trained on neutral synthetic rows only (TSTR)
    recall: tuple[Estimate, ...]  # its share of right answers within each true class [C]
    class_shares: Shares  # [C] of true classes
    confusion: Shares | None  # [C, C] true class, predicted class, of all; None beyond 16 classes
    domains: dict[str, Estimate]  # TSTR accuracy with rows of each client's code, where it is known
    mmd2: Estimate  # squared, of directions, to neutral synthetic rows; 0 is no difference
    inside: Estimate  # recall: share within the manifold of synthetic rows
    coverage: Estimate  # share of synthetic rows in map cells in which held-out records show
    nearest: Shares  # histogram of the distance to the nearest synthetic row
    nearest_members: Shares
    ratio: Shares  # histogram of d1 / d2, the nearest over the next synthetic row's distance
    ratio_members: Shares
    closer: Estimate  # share nearer to a synthetic row than 95 % of synthetic rows are to others
    closer_members: Estimate
    median_ratio: Estimate
    median_ratio_members: Estimate
    attack_auc: Estimate  # membership attack by distance; 0.5 is guessing
    attack_null_sd: float  # its standard deviation by sampling alone if membership changed nothing
    epsilon_lower: float  # what this attack proves of epsilon, at the plan's delta and 95 %
    map: Shares  # [12, 12]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of one report round. ``noise_std``: of one coordinate of one site's released vector, whose
    L2 sensitivity is ``sensitivity`` for adding or removing one unit.
    """

    classes: tuple[str, ...]
    noise_std: float
    sensitivity: float
    distance_thresholds: Vector  # between bins of ``nearest``; directions are 0 to 2 apart
    ratio_thresholds: Vector
    synthetic_nearest: Vector  # the same histograms of synthetic rows among themselves
    synthetic_ratio: Vector
    synthetic_map: Vector  # [12, 12]
    map_edges: Vector  # [2, 13] along the first two principal components of synthetic rows
    synthetic_rows: int
    pooled: SiteStatistics
    sites: tuple[SiteStatistics, ...]
    missing: tuple[str, ...]  # clients with a code that released no statistics


def read(spec: RunSpec, weights: bytes) -> Statistics | None:
    """The statistics in a published weights file; None if no report round was published into it.

    Raises ``TensorFileError`` for a file that is damaged.
    """
    raise NotImplementedError
