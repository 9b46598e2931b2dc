"""One row's network, weights and batch, drawn at random: cost does not depend on the values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.clipping.plan import CODE_DIM, CODE_DROPOUT, LATENT_DIM, Row
from core.models.architecture import Architecture
from core.models.losses import Records


@dataclass(frozen=True, eq=False)
class Case:
    """``code_of`` [B], ascending: 0 the client's code, 1 the neutral one, ``codes`` [2, c]."""

    network: Architecture
    weights: dict[str, Tensor]
    records: Records
    codes: Tensor
    code_of: NDArray[np.int64]

    @property
    def given_bytes(self) -> int:
        """Weights and batch: what every method needs before it begins."""
        records = self.records
        given = [*self.weights.values(), records.residual, records.labels, records.draws]
        return sum(tensor.numel() * tensor.element_size() for tensor in given)


def case(row: Row) -> Case:
    network = row.network
    draw = torch.Generator().manual_seed(0)
    weights = {name: 0.05 * torch.randn(shape, generator=draw) for name, shape in network.blocks}
    records = Records(
        torch.randn(row.batch, row.inputs, generator=draw),
        torch.randint(0, network.classes, (row.batch,), generator=draw),
        torch.randn(row.batch, LATENT_DIM, generator=draw),
    )
    code = torch.randn(CODE_DIM, generator=draw)
    dropped = np.random.default_rng(0).random(row.batch) < CODE_DROPOUT
    codes = torch.stack([code, torch.zeros(CODE_DIM)])
    return Case(network, weights, records, codes, np.sort(dropped.astype(np.int64)))
