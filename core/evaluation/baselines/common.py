"""What all baselines share: the terms of privacy, clipping by unit, the release, the protocol.

Every baseline is accounted alike: Gaussian mechanisms (``core.privacy.mechanism``) for adding or
removing one unit of one site, calibrated together by ``core.privacy.accounting``; what a baseline
EXECUTED it returns as events, from which epsilon is recomputed.

``noise_mode``:

* "local": each site adds the whole noise to its own sum; the server may see every site's release.
* "aggregated": noise is added once, to the sum over sites. The guarantee then holds ONLY if nobody
  sees a single site's sum, hence needs secure aggregation with the noise made inside it, and
  sites that do not collude. A simulation of that, nothing more.

Per-site epsilon is the same in both. Simulation only: baselines read all sites' raw records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.rule import NoiseMode
from core.models.layout import NULL_COORDINATES
from core.privacy import accounting
from core.privacy.clipping import clip_factors
from core.privacy.events import PrivacyEvent, release
from core.privacy.mechanism import noised
from core.privacy.noise import NoiseSource

Vector = NDArray[np.float64]
Rows = NDArray[np.int64]
EventsBySite = tuple[tuple[PrivacyEvent, ...], ...]

# A noised count below this many standard deviations of its noise is no denominator.
TRUSTED_SDS = 2.0

_CHUNK_RECORDS = 2_048  # bounds memory; sums do not depend on it beyond rounding


@dataclass(frozen=True)
class Terms:
    """At which price a baseline may look: (epsilon, delta) for each site, add or remove one unit.

    ``secret`` (32 bytes or more) keys the coins of sampled rounds; a fresh one if it is None.
    """

    epsilon: float
    delta: float
    unit: Literal["record", "patient"] = "record"
    noise_mode: NoiseMode = "local"
    secret: bytes | None = None


class Baseline(Protocol):
    """A fitted baseline. ``events`` are those that each site executed, in the sites' order.

    ``private`` is False where raw records went in without noise (epsilon is infinite).
    """

    @property
    def private(self) -> bool: ...

    @property
    def events(self) -> EventsBySite: ...


@runtime_checkable
class Sampler(Baseline, Protocol):
    """A baseline that makes records."""

    def sample(self, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``n`` rows x [n, d] of norm sqrt(d) and labels [n]: post-processing, free."""
        ...


@runtime_checkable
class Predictor(Baseline, Protocol):
    """A baseline that labels records instead."""

    def predict(self, x: NDArray[np.floating]) -> NDArray[np.int64]:
        """Class ids [n] of records [n, d]."""
        ...


def spent(baseline: Baseline, delta: float) -> float:
    """Epsilon at ``delta`` of the site that spent most, recomputed from the executed events.

    Sites are disjoint, so the whole is the maximum. Infinite for what is not private.
    """
    if not baseline.private:
        return math.inf
    return max((accounting.epsilon(done, delta) for done in baseline.events), default=0.0)


def calibrated(
    terms: Terms, events_of: Callable[[float], Sequence[PrivacyEvent]]
) -> tuple[float, tuple[PrivacyEvent, ...]]:
    """(noise multiplier z, its events): the least z whose composition keeps the terms."""
    z = accounting.calibrate(events_of, target=terms.epsilon, delta=terms.delta)
    return z, tuple(events_of(z))


def gaussian(z: float, unit: str) -> PrivacyEvent:
    """One full-batch Gaussian release."""
    return release(noise_multiplier=z, sample_rate=1.0, unit=unit)


def released_sum(
    sums: Sequence[Vector], *, z: float, bound: float, mode: NoiseMode, noise: NoiseSource
) -> Vector:
    """The noised sum over sites of vectors [P] with L2 sensitivity ``bound`` each.

    Empty sites take part like all others: whether a site has records is not shown.
    """

    def one(total: Vector) -> Vector:
        released = noised(
            total, null_coordinates=NULL_COORDINATES, noise_multiplier=z, bound=bound, noise=noise
        )
        return np.asarray(released[: total.size], np.float64)

    if mode == "aggregated":
        return one(np.sum(sums, axis=0))
    return np.asarray(np.sum([one(total) for total in sums], axis=0))


def noise_std(z: float, bound: float, sites: int, mode: NoiseMode) -> float:
    """Standard deviation of a coordinate of ``released_sum``."""
    return z * bound * (math.sqrt(sites) if mode == "local" else 1.0)


def known(site: EmbeddingDataset, classes: int) -> EmbeddingDataset:
    """The site without records of classes outside 0..C-1; units keep their names.

    Decided record by record, so neighbouring data sets stay neighbours.
    """
    keep = (site.y >= 0) & (site.y < classes)
    if keep.all():
        return site
    rows = np.flatnonzero(keep)
    return EmbeddingDataset.from_arrays(
        site.x[rows], site.y[rows], tuple(site.unit[row] for row in rows)
    )


def unit_chunks(
    site: EmbeddingDataset,
    units: Rows | None = None,
    *,
    limit: int = _CHUNK_RECORDS,
) -> Iterator[Rows]:
    """Rows of valid records, whole units together and consecutive, about ``limit`` at a time.

    ``units`` are indices into ``unit_ids``; all of them by default.
    """
    rows = np.flatnonzero(site.valid)
    if units is not None:
        rows = rows[np.isin(site.unit_of[rows], units)]
    rows = rows[np.argsort(site.unit_of[rows], kind="stable")]
    if len(rows) == 0:
        return
    groups = site.unit_of[rows]
    ends = np.flatnonzero(np.r_[groups[1:] != groups[:-1], True]) + 1  # of each unit
    marks = np.searchsorted(ends, range(limit, len(rows), limit))
    for chunk in np.split(rows, np.unique(ends[marks])):
        if len(chunk):
            yield chunk


def clipped_class_sums(
    site: EmbeddingDataset,
    features: Callable[[Rows], Vector],
    *,
    classes: int,
    width: int,
    bound: float,
) -> Vector:
    """Sum over units of clip(sum of e_y (x) features, bound): [C, width]. NOT noised.

    ``features`` maps rows [b] to [b, width], each depending on its own record only. Sensitivity:
    ``bound`` in L2 for adding or removing one unit. |sum of e_y (x) f|^2 of a unit is the sum
    over its classes of |sum of f|^2, so no [C, width] array is made for any unit.
    """
    total = np.zeros((classes, width))
    for rows in unit_chunks(site):
        values = features(rows)
        units, labels = site.unit_of[rows], site.y[rows]
        factors = clip_factors(_unit_norms(values, units, labels), bound)
        weights = factors[np.unique(units, return_inverse=True)[1]]
        for label in np.unique(labels):
            mine = labels == label
            total[label] += weights[mine] @ values[mine]
    return total


def _unit_norms(values: Vector, units: Rows, labels: Rows) -> Vector:
    """[U] norms of each unit's e_y (x) values; ``units`` are sorted."""
    order = np.lexsort((labels, units))
    change = (np.diff(units[order]) != 0) | (np.diff(labels[order]) != 0)
    starts = np.flatnonzero(np.r_[True, change])
    squares = np.sum(np.add.reduceat(values[order], starts, axis=0) ** 2, axis=1)
    owners = np.unique(units[order][starts], return_inverse=True)[1]
    return np.asarray(np.sqrt(np.bincount(owners, weights=squares)))


def outer_norms(delta: Vector, a: Vector, owners: Rows) -> Vector:
    """[U] norms of each unit's sum of delta (x) a, from rows [b, p] and [b, q].

    ``owners`` are sorted and number the units from 0. One record: |delta| |a|. Several: the norm
    of the [p, q] sum itself; inner products of records would lose a small sum of large terms to
    cancellation, and with it the bound. No [b, p, q] array is made.
    """
    sizes = np.bincount(owners)
    starts = np.cumsum(sizes) - sizes
    norms = np.linalg.norm(delta[starts], axis=1) * np.linalg.norm(a[starts], axis=1)
    for unit in np.flatnonzero(sizes > 1):
        own = slice(starts[unit], starts[unit] + sizes[unit])
        norms[unit] = np.linalg.norm(delta[own].T @ a[own])
    return np.asarray(norms)


def class_counts(site: EmbeddingDataset, classes: int) -> Vector:
    """[C] sum over units of clip(class counts of the unit, 1). NOT noised. Sensitivity 1."""
    return clipped_class_sums(
        site, lambda rows: np.ones((len(rows), 1)), classes=classes, width=1, bound=1.0
    )[:, 0]


def on_sphere(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows scaled to norm sqrt(d); a zero row stays zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(math.sqrt(x.shape[1]) * x / np.where(norms > 0, norms, 1.0), np.float32)
