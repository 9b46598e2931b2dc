"""A membership-inference attack on synthetic records. It needs raw records: for simulations, and
for a site's own eyes (``core.report.local``).

An attack shows what ONE attacker achieves: a lower bound on the leak. An AUC near 0.5 proves no
privacy; the guarantee is the ledger's epsilon. The attack reads members and non-members as they
are, so its result must not reach a server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from core.evaluation.distance import squared_distances, unit_rows


@dataclass(frozen=True)
class MembershipAttack:
    """``auc`` in [0, 1]: chance that a member scores above a non-member; 0.5 is guessing.

    ``null_sd`` is the standard deviation of ``auc`` if membership made no difference.
    """

    auc: float
    null_sd: float


def membership_attack(
    members: NDArray[np.floating],
    non_members: NDArray[np.floating],
    synthetic: NDArray[np.floating],
) -> MembershipAttack:
    """Attack by distance to the nearest synthetic row: nearer means "was in the training set".

    ``members`` [n, d] trained the generator, ``non_members`` [m, d] come from the same
    distribution and did not, ``synthetic`` [s, d] is what the attacker sees. Ties count half.
    Chen et al. (2020), GAN-Leaks, the full black-box attack, on directions.
    """
    if min(len(members), len(non_members), len(synthetic)) == 0:
        raise ValueError("the attack needs members, non-members and synthetic rows")
    n, m = len(members), len(non_members)
    made = unit_rows(synthetic)
    distances = np.concatenate([nearest(members, made), nearest(non_members, made)])
    ranks = rankdata(-distances)  # ties get their mean rank
    auc = (float(ranks[:n].sum()) - n * (n + 1) / 2.0) / (n * m)
    return MembershipAttack(auc=auc, null_sd=math.sqrt((n + m + 1) / (12.0 * n * m)))


def nearest(rows: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """[n] distance from the direction of each of ``rows`` [n, d] to that of the nearest other."""
    result = np.empty(len(rows))
    for part, squared in squared_distances(unit_rows(rows), unit_rows(others)):
        result[part] = np.sqrt(squared.min(axis=1))
    return result
