"""How close synthetic records lie to real ones: MMD, PRDC, per-domain matrices.

Every function here looks at RAW real records, and its result is a release without noise: for
simulations, and for a site's own eyes (``core.report.local``). Nothing of it may reach a server.
All metrics compare directions x / |x|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.evaluation.distance import Rows, squared_distances, unit_rows
from core.evaluation.utility import fit

# Public rule: directions are at most 2 apart, so these cover near duplicates up to the whole
# sphere in every dimension. A median of distances would be learnt from the records.
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0)

# Neighbours that define a record's ball in PRDC; the value of Naeem et al. (2020), section 5.
NEIGHBOURS = 5

LabelledRows = tuple[NDArray[np.floating], NDArray[np.integer]]


def mmd(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    bandwidths: Sequence[float] = BANDWIDTHS,
) -> float:
    """Unbiased estimate of the SQUARED maximum mean discrepancy of rows [n, d] and [m, d].

    Kernel: the mean over ``bandwidths`` s of exp(-|x - y|^2 / (2 s^2)); Gretton et al. (2012),
    equation 3. About 0, and possibly below it, for two samples of one distribution. Raises
    ``ValueError`` for fewer than two rows on either side.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("an unbiased MMD needs at least two rows on either side")
    left, right = unit_rows(a), unit_rows(b)
    return (
        _within(left, bandwidths)
        + _within(right, bandwidths)
        - 2.0 * _kernel_sum(left, right, bandwidths) / (len(a) * len(b))
    )


def _kernel_sum(a: Rows, b: Rows, bandwidths: Sequence[float]) -> float:
    total = 0.0
    for _, squared in squared_distances(a, b):
        for width in bandwidths:
            total += float(np.exp(squared / (-2.0 * width**2)).sum())
    return total / len(bandwidths)


def _within(a: Rows, bandwidths: Sequence[float]) -> float:
    """Mean kernel over ordered pairs of different rows: a row's kernel with itself is 1."""
    return (_kernel_sum(a, a, bandwidths) - len(a)) / (len(a) * (len(a) - 1))


@dataclass(frozen=True)
class Prdc:
    """Fractions in [0, 1], but ``density``, whose expectation is 1 for equal distributions."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: NDArray[np.floating], synthetic: NDArray[np.floating], k: int = NEIGHBOURS) -> Prdc:
    """Precision, recall (Kynkaanniemi et al. 2019), density, coverage (Naeem et al. 2020).

    A row's ball reaches to its k-th nearest OTHER row of its own set and is open. Raises
    ``ValueError`` unless both sets have more than ``k`` rows.
    """
    if k < 1 or min(len(real), len(synthetic)) <= k:
        raise ValueError(f"k-nearest-neighbour balls need more than k={k} rows on either side")
    truth, made = unit_rows(real), unit_rows(synthetic)
    real_radius, made_radius = _kth_squared(truth, k), _kth_squared(made, k)
    hits = np.zeros(len(made), np.int64)
    recalled = np.zeros(len(truth), bool)
    covered = np.zeros(len(truth), bool)
    for part, squared in squared_distances(truth, made):
        hits += (squared < real_radius[part, None]).sum(axis=0)
        recalled[part] = (squared < made_radius[None, :]).any(axis=1)
        covered[part] = squared.min(axis=1) < real_radius[part]
    return Prdc(
        precision=float((hits > 0).mean()),
        recall=float(recalled.mean()),
        density=float(hits.mean()) / k,
        coverage=float(covered.mean()),
    )


def _kth_squared(rows: Rows, k: int) -> Rows:
    """[n] squared distance of each row to its k-th nearest other row."""
    result = np.empty(len(rows))
    for part, squared in squared_distances(rows, rows):
        # The row itself is no neighbour, even where rounding puts another row nearer.
        squared[np.arange(squared.shape[0]), np.arange(part.start, part.stop)] = np.inf
        result[part] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return result


@dataclass(frozen=True, eq=False)
class DomainFidelity:
    """``mmd`` and ``tstr`` [K, M]: row k is a source of samples, column m a client's records.

    NaN where a client has too few records (two for ``mmd``, one for ``tstr``).
    """

    mmd: NDArray[np.float64]
    tstr: NDArray[np.float64]

    def own_is_nearest(self) -> NDArray[np.bool_]:
        """[M] whether client m's records are nearest (MMD) to source m, among all sources.

        Sources 0..M-1 must be the clients' own codes in order; others (neutral) may follow.
        A client without an MMD counts as not nearest.
        """
        clients = self.mmd.shape[1]
        if len(self.mmd) < clients:
            raise ValueError("every client needs its own source of samples")
        measured = np.where(np.isnan(self.mmd), np.inf, self.mmd)
        return np.asarray(
            (measured.argmin(axis=0) == np.arange(clients)) & np.isfinite(measured.min(axis=0))
        )

    def advantage(self, neutral: int) -> NDArray[np.float64]:
        """[M] MMD of source ``neutral`` minus that of the own code: positive, the code helps."""
        return np.asarray(self.mmd[neutral] - np.diagonal(self.mmd))


def domain_fidelity(
    sources: Sequence[LabelledRows], clients: Sequence[LabelledRows]
) -> DomainFidelity:
    """Does code m reproduce client m better than other codes do? Looks at raw records.

    ``sources`` (x [n, d], y [n]) made with one code each; ``clients`` the clients' real records,
    best held out from training. Entry (k, m) of ``mmd`` compares source k with client m's
    records; of ``tstr`` it is the accuracy on client m of a classifier trained on source k.
    Classes missing on either side are ordinary.
    """
    made = [unit_rows(x) for x, _ in sources]
    truth = [unit_rows(x) for x, _ in clients]
    made_own = [_within(rows, BANDWIDTHS) if len(rows) > 1 else np.nan for rows in made]
    truth_own = [_within(rows, BANDWIDTHS) if len(rows) > 1 else np.nan for rows in truth]
    distances = np.full((len(sources), len(clients)), np.nan)
    accuracy = np.full_like(distances, np.nan)
    for k, (_, labels) in enumerate(sources):
        classify = fit(made[k], labels)
        for m, (_, real_labels) in enumerate(clients):
            if len(truth[m]) == 0:
                continue
            accuracy[k, m] = float((classify(truth[m]) == real_labels).mean())
            pairs = len(made[k]) * len(truth[m])
            across = _kernel_sum(made[k], truth[m], BANDWIDTHS) / pairs
            distances[k, m] = made_own[k] + truth_own[m] - 2.0 * across
    return DomainFidelity(mmd=distances, tstr=accuracy)
