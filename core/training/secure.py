"""A client's part of a secure sum: its clipped sum on the public grid, with its share of the noise.

Nothing without noise is returned. What this noise is worth alone is little: it is one of several
shares, and the vector leaves the site under masks only (``core.secagg.participant``). Sensitivity
and neighbouring relation: ``core.privacy.mechanism``, ``core.privacy.discrete.lattice``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.errors import PlanRefused
from core.federation.secure_sum import ALL_SITES, check_session, grid_of
from core.models.layout import NULL_COORDINATES
from core.privacy.coins import CoinStream
from core.privacy.discrete import lattice
from core.privacy.discrete.gaussian import BitSource
from core.training.compute import CPU, Compute
from core.training.local import clipped_total
from core.wire.messages import WorkOrder


def contribution(
    order: WorkOrder,
    dataset: EmbeddingDataset,
    inputs: Mapping[str, bytes],
    *,
    secret: bytes,
    bits: BitSource,
    compute: Compute = CPU,
) -> NDArray[np.int64]:
    """The order's vector [P + null] in steps of the round's grid; draws noise once.

    ``inputs``, ``secret``: as of ``core.training.local.execute``. Raises ``PlanRefused`` for an
    order without a sum, a session that the plan does not imply, or seeded noise.
    """
    spec, number = order.spec, order.round_number
    if order.sum is None:
        raise PlanRefused("the order names no secure sum", field="sum")
    check_session(spec, number, order.sum.session)
    if not bits.private and spec.plan.purpose != "simulation":
        raise PlanRefused("seeded noise is refused outside simulation", field="noise")
    coins = CoinStream(secret, spec.run_id, number, order.attempt)
    total = clipped_total(spec, number, ALL_SITES, dataset, inputs, coins, compute=compute)
    grid = grid_of(spec, number, len(order.sum.session.sites))
    return lattice.released(np.concatenate([total, np.zeros(NULL_COORDINATES)]), grid, bits)
