"""A training round by ghost clipping: the default engine."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from core.models.architecture import architecture_of
from core.models.layout import train_layout
from core.models.losses import Records
from core.privacy.clipping import ClipRule
from core.privacy.ghost import HyperModel, clipped_sum
from core.privacy.mechanism import clip_rule
from core.training.compute import Compute
from core.training.gradients import Batch


def ghost_sum(
    batch: Batch,
    weights: NDArray[np.floating],
    compute: Compute,
    rule: ClipRule | None = None,
) -> NDArray[np.float64]:
    """Sum [P] of the batch's clipped unit gradients, by ``core.privacy.ghost``.

    ``rule``: another than the plan's, for comparisons (``core.training.paper``).
    """
    spec = batch.spec
    tile = compute.tile(spec)

    def tensor(values: NDArray[np.floating]) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=compute.device)

    def load(places: NDArray[np.int64]) -> Records:
        residual, labels, draws = batch.inputs(places, rows_at_once=tile)
        features = batch.features(places)
        return Records(
            tensor(residual),
            torch.as_tensor(labels, device=compute.device),
            tensor(draws),
            None if features is None else tensor(features),
        )

    # The layout judges the weights before the batch is looked at: they must fail for an empty one.
    parts = train_layout(spec).split(weights)
    network = architecture_of(spec)
    model = HyperModel(
        network=network,
        weights={name: tensor(part) for name, part in parts.items()},
        codes=tensor(batch.network_codes(parts)),
        client_code=0 if network.trains_code else None,
        reduced=compute.precision == "bfloat16",
    )
    rule = clip_rule(spec.plan.privacy) if rule is None else rule
    sums = clipped_sum(model, batch.unit_of, batch.code_of, load, rule, tile=tile)
    return sums.vector().cpu().numpy()
