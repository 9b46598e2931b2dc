"""What the report round measured on records, in the form of the report: finite or absent.

Every figure has the standard error of its noise and sampling; histograms are unbiased, so noise
makes some shares negative. They are clipped where they are drawn, not here.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from core.federation.values import Frozen
from core.report import statistics
from core.report.statistics import SiteStatistics, Statistics
from core.report.values import Estimate

Numbers = tuple[float, ...]
Matrix = tuple[Numbers, ...]
_DIGITS = 6


class Histogram(Frozen):
    values: Numbers
    se: Numbers


class Grid(Frozen):
    values: Matrix
    se: Matrix


class Site(Frozen):
    """One site's figures, or of all together (``client`` ""). Of held-out units, unless a name
    says ``members``. None: the noise leaves nothing to say. See
    ``core.report.statistics.SiteStatistics``.
    """

    client: str
    held_out: Estimate | None
    members: Estimate | None
    accuracy: Estimate | None
    recall: tuple[Estimate | None, ...]
    confusion: Grid | None
    domains: dict[str, Estimate | None]
    mmd2: Estimate | None
    inside: Estimate | None
    coverage: Estimate | None
    nearest: Histogram | None
    nearest_members: Histogram | None
    closer: Estimate | None
    closer_members: Estimate | None
    median_ratio: Estimate | None
    median_ratio_members: Estimate | None
    attack_auc: Estimate | None
    attack_null_sd: float | None
    epsilon_lower: float
    map: Grid | None


class Measured(Frozen):
    """``noise_std`` of one coordinate of a site's release, ``sensitivity`` for one unit."""

    noise_std: float
    sensitivity: float
    distance_thresholds: Numbers
    synthetic_nearest: Numbers
    synthetic_map: Matrix
    synthetic_rows: int
    pooled: Site
    sites: tuple[Site, ...]
    missing: tuple[str, ...]


def measured(found: Statistics, withdrawn: Collection[str] = ()) -> Measured:
    """``withdrawn``: clients of which nothing is shown apart; the sums over all hold them."""
    return Measured(
        noise_std=found.noise_std,
        sensitivity=found.sensitivity,
        distance_thresholds=_numbers(found.distance_thresholds),
        synthetic_nearest=_numbers(found.synthetic_nearest),
        synthetic_map=tuple(_numbers(row) for row in found.synthetic_map),
        synthetic_rows=found.synthetic_rows,
        pooled=_site(found.pooled, withdrawn),
        sites=tuple(_site(one, withdrawn) for one in found.sites if one.client not in withdrawn),
        missing=tuple(name for name in found.missing if name not in withdrawn),
    )


def _site(one: SiteStatistics, withdrawn: Collection[str]) -> Site:
    null_sd = one.attack_null_sd
    return Site(
        client=one.client,
        held_out=_estimate(one.held_out),
        members=_estimate(one.members),
        accuracy=_estimate(one.accuracy),
        recall=tuple(_estimate(value) for value in one.recall),
        confusion=None if one.confusion is None else _grid(one.confusion),
        domains={
            name: _estimate(value) for name, value in one.domains.items() if name not in withdrawn
        },
        mmd2=_estimate(one.mmd2),
        inside=_estimate(one.inside),
        coverage=_estimate(one.coverage),
        nearest=_histogram(one.nearest),
        nearest_members=_histogram(one.nearest_members),
        closer=_estimate(one.closer),
        closer_members=_estimate(one.closer_members),
        median_ratio=_estimate(one.median_ratio),
        median_ratio_members=_estimate(one.median_ratio_members),
        attack_auc=_estimate(one.attack_auc),
        attack_null_sd=round(null_sd, _DIGITS) if math.isfinite(null_sd) else None,
        epsilon_lower=max(0.0, one.epsilon_lower) if math.isfinite(one.epsilon_lower) else 0.0,
        map=_grid(one.map),
    )


def _estimate(one: statistics.Estimate) -> Estimate | None:
    if not (math.isfinite(one.value) and math.isfinite(one.se)):
        return None
    return Estimate(value=round(float(one.value), _DIGITS), se=round(float(one.se), _DIGITS))


def _histogram(shares: statistics.Shares) -> Histogram | None:
    if not (np.isfinite(shares.values).all() and np.isfinite(shares.se).all()):
        return None
    return Histogram(values=_numbers(shares.values), se=_numbers(shares.se))


def _grid(shares: statistics.Shares) -> Grid | None:
    if not (np.isfinite(shares.values).all() and np.isfinite(shares.se).all()):
        return None
    return Grid(
        values=tuple(_numbers(row) for row in shares.values),
        se=tuple(_numbers(row) for row in shares.se),
    )


def _numbers(values: NDArray[np.float64]) -> Numbers:
    return tuple(round(float(value), _DIGITS) for value in values)
