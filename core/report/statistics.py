"""What the report round released, read: estimates per site and pooled, with standard errors.

Post-processing of released values: free, and computed from the run's specification and the weights
file alone. Numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.layout import report_layout
from core.privacy.mechanism import sensitivity
from core.report import blocks
from core.report.estimates import SiteEstimator
from core.report.neighbours import row_count
from core.report.reference import Reference
from core.report.site import Estimate as Estimate
from core.report.site import Shares as Shares
from core.report.site import SiteStatistics as SiteStatistics
from core.report.vectors import read_vectors

Vector = NDArray[np.float64]


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
    if spec.report_round is None:
        return None
    found = read_vectors(weights, report_layout(spec).size)
    if found is None:
        return None
    vectors, clients, missing = found
    reference = Reference.read(spec, weights, classifiers=False)
    bound = sensitivity(spec, spec.report_round)
    noise_std = spec.event(spec.report_round).noise_multiplier * bound
    per_site = [
        SiteEstimator(spec, reference, vector, noise_std).all(client)
        for client, vector in zip(clients, vectors, strict=True)
    ]
    total_std = noise_std * math.sqrt(max(len(clients), 1))
    return Statistics(
        classes=spec.space.classes,
        noise_std=noise_std,
        sensitivity=bound,
        distance_thresholds=reference.distances,
        ratio_thresholds=np.array(blocks.RATIOS),
        synthetic_nearest=reference.nearest,
        synthetic_ratio=reference.ratio,
        synthetic_map=reference.map,
        map_edges=reference.edges,
        synthetic_rows=row_count(spec),
        pooled=SiteEstimator(spec, reference, vectors.sum(axis=0), total_std).all(""),
        sites=tuple(per_site),
        missing=missing,
    )
