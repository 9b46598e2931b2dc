"""Per-unit clipped gradient sums: the query of a training round, before noise.

Reference path: opacus' per-sample gradients over codes expanded to the batch, at B * P memory.
Records of one unit are summed BEFORE the norm is taken, so the bound C holds per unit.

Sensitivity of ``clipped_sum``: C in L2 for adding or removing one unit, given the released
inputs (frame, weights): a unit's inclusion, code, latent draws and gradient depend on that unit,
the released inputs and the unit's own secret stream only.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models.frame import Frame
from core.models.hypernetwork import FilmHyperCVAE
from core.models.layout import train_layout
from core.privacy.coins import CoinStream
from core.privacy.mechanism import clip_rows

# Gradients held at once, in records and in numbers: memory depends neither on the batch nor on how
# many records one unit has. The result does not depend on either.
_CHUNK_RECORDS = 1_024
_CHUNK_NUMBERS = 16_000_000


def clipped_sum(
    spec: RunSpec,
    dataset: EmbeddingDataset,
    frame: Frame,
    weights: NDArray[np.floating],
    client_id: str,
    coins: CoinStream,
    *,
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Sum [P] over the Poisson-sampled units of their clipped gradients. NOT noised.

    ``weights`` phi [P] (any block beyond P, as in a stored update, is refused by the layout).
    """
    layout = train_layout(spec)
    # Before the batch is looked at: unusable weights must fail for an empty batch, too.
    module = _module(spec, weights, device)
    units = dataset.unit_ids
    included = coins.bernoulli("inclusion", units, spec.plan.privacy.sample_rate)
    chosen = np.flatnonzero(included)
    total = np.zeros(layout.size)
    if len(chosen) == 0:
        return total
    neutral = coins.bernoulli("code-dropout", units, spec.plan.model.code_dropout)
    by_unit = np.argsort(dataset.unit_of, kind="stable")
    starts = np.searchsorted(dataset.unit_of[by_unit], np.arange(len(units) + 1))
    chunk = max(1, min(_CHUNK_RECORDS, _CHUNK_NUMBERS // layout.size))
    for group in _groups(chosen, np.diff(starts), chunk):
        mine = np.concatenate([by_unit[starts[u] : starts[u + 1]] for u in group])
        mine = mine[dataset.valid[mine]]
        gradients = np.zeros((len(group), layout.size))
        for start in range(0, len(mine), chunk):
            rows = mine[start : start + chunk]
            per_record = _gradients(spec, module, dataset, frame, client_id, rows, neutral, coins)
            np.add.at(gradients, np.searchsorted(group, dataset.unit_of[rows]), per_record)
        total += clip_rows(gradients, spec.plan.privacy.clip_norm).sum(axis=0)
    return total


def _groups(
    chosen: NDArray[np.int64], sizes: NDArray[np.int64], chunk: int
) -> list[NDArray[np.int64]]:
    """Whole units in groups of about ``chunk`` records; larger units stand alone."""
    ends = np.cumsum(sizes[chosen])
    cuts = np.searchsorted(ends, np.arange(chunk, int(ends[-1]), chunk))
    return [group for group in np.split(chosen, cuts) if len(group)]


def _module(
    spec: RunSpec, weights: NDArray[np.floating], device: str
) -> GradSampleModule[FilmHyperCVAE]:
    module = FilmHyperCVAE(spec)
    module.load(spec, weights)
    # loss_reduction="sum": the hooks must not multiply by a batch size that we never divide by.
    return GradSampleModule(module.to(device), batch_first=True, loss_reduction="sum")


def record_inputs(
    spec: RunSpec,
    dataset: EmbeddingDataset,
    frame: Frame,
    client_id: str,
    rows: NDArray[np.int64],
    neutral: NDArray[np.bool_],
    coins: CoinStream,
) -> tuple[NDArray[np.float64], ...]:
    """(rho [B, r], one-hot [B, C], codes [B, c], draws [B, z]) of records; see the model."""
    labels = dataset.y[rows]
    dropped = neutral[dataset.unit_of[rows]]
    own = frame.code(client_id)
    codes = np.where(dropped[:, None], 0.0, own)
    x = np.sqrt(spec.space.dim) * dataset.directions[rows]
    base = np.where(dropped[:, None], frame.base[labels], frame.base_output(own)[labels])
    rho = frame.whiten(x - base)
    keys = [dataset.record_keys[row] for row in rows]
    draws = coins.normal("latent", keys, spec.plan.model.latent_dim)
    return rho, np.eye(len(spec.space.classes))[labels], codes, draws


def _gradients(
    spec: RunSpec,
    module: GradSampleModule[FilmHyperCVAE],
    dataset: EmbeddingDataset,
    frame: Frame,
    client_id: str,
    rows: NDArray[np.int64],
    neutral: NDArray[np.bool_],
    coins: CoinStream,
) -> NDArray[np.float64]:
    """[B, P] one gradient a record, float32 from torch, widened to float64."""
    device = next(module.parameters()).device
    inputs = [
        torch.as_tensor(part, dtype=torch.float32, device=device)
        for part in record_inputs(spec, dataset, frame, client_id, rows, neutral, coins)
    ]
    module.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        # torch warns that hooks see no gradient for the inputs (records); none is wanted.
        warnings.filterwarnings("ignore", message=".*non-full backward hook.*")
        warnings.filterwarnings("ignore", message=".*Full backward hook is firing.*")
        module(*inputs).sum().backward()
    parts = [p.grad_sample.reshape(len(rows), -1) for p in module.parameters()]
    return torch.cat(parts, dim=1).double().cpu().numpy()
