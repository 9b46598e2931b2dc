"""The figures of one site's report, with their standard errors. Values only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
