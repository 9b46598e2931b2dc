"""A training round by opacus' per-sample gradients: the slow, simple cross-check of the fast one.

Codes are expanded to the batch and every record's gradient is written out, at B * P memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule

from core.models.architecture import architecture_of, group_of
from core.models.hypernetwork import HyperCVAE
from core.models.layout import Layout, train_layout
from core.privacy.mechanism import clip_parts, clip_rule
from core.training.compute import Compute
from core.training.gradients import Batch

# Gradients held at once, in records and in numbers: memory depends neither on the batch nor on how
# many records one unit has. The result does not depend on either.
_CHUNK_RECORDS = 1_024
_CHUNK_NUMBERS = 16_000_000


def reference_sum(
    batch: Batch, weights: NDArray[np.floating], compute: Compute
) -> NDArray[np.float64]:
    """Sum [P] of the batch's clipped unit gradients, each written out."""
    total = np.zeros(train_layout(batch.spec).size)
    for _, rows in clipped_units(batch, weights, compute):
        total += rows.sum(axis=0)
    return total


def clipped_units(
    batch: Batch, weights: NDArray[np.floating], compute: Compute
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """(units [U], their clipped gradients [U, P]), some at a time: what each unit adds. NOT noised.

    ``units`` are places in the data set's ``unit_ids``. Each row is no longer than the sensitivity
    of the round and depends on its unit alone, given the released inputs and the unit's coins.
    """
    spec = batch.spec
    layout = train_layout(spec)
    # Before the batch is looked at: unusable weights must fail for an empty batch, too.
    module = _module(batch, layout, weights, compute.device)
    units = batch.unit_of
    order = np.argsort(units, kind="stable")
    chosen, sizes = np.unique(units, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    chunk = max(1, min(_CHUNK_RECORDS, _CHUNK_NUMBERS // layout.size))
    for group in _groups(sizes, chunk):
        mine = order[starts[group[0]] : starts[group[-1]] + sizes[group[-1]]]
        gradients = np.zeros((len(group), layout.size))
        for start in range(0, len(mine), chunk):
            places = mine[start : start + chunk]
            owner = np.searchsorted(chosen[group], units[places])
            np.add.at(gradients, owner, _gradients(module, batch, places))
        rule = clip_rule(spec.plan.privacy)
        yield chosen[group], clip_parts(gradients, _columns(layout), rule)


def _columns(layout: Layout) -> NDArray[np.str_]:
    """[P] the group of blocks that each coordinate belongs to."""
    return np.concatenate(
        [np.full(int(np.prod(shape)), group_of(name)) for name, shape in layout.blocks]
    )


def _groups(sizes: NDArray[np.int64], chunk: int) -> list[NDArray[np.int64]]:
    """Whole units of these sizes in groups of about ``chunk`` records; larger ones stand alone."""
    if len(sizes) == 0:
        return []
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(ends, np.arange(chunk, int(ends[-1]), chunk))
    return [group for group in np.split(np.arange(len(sizes)), cuts) if len(group)]


def _module(
    batch: Batch, layout: Layout, weights: NDArray[np.floating], device: str
) -> GradSampleModule[HyperCVAE]:
    module = HyperCVAE(architecture_of(batch.spec))
    parts = layout.split(weights)
    module.load({name: torch.from_numpy(np.array(part)) for name, part in parts.items()})
    # loss_reduction="sum": the hooks must not multiply by a batch size that we never divide by.
    return GradSampleModule(module.to(device), batch_first=True, loss_reduction="sum")


def _gradients(
    module: GradSampleModule[HyperCVAE], batch: Batch, places: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[B, P] one gradient a record, float32 from torch, widened to float64."""
    device = next(module.parameters()).device
    residual, labels, draws = batch.inputs(places)
    features = batch.features(places)
    if architecture_of(batch.spec).trains_code:  # a coin: the code is one of the weights
        codes = 1.0 - batch.code_of[places, None]
    else:
        codes = batch.codes[batch.code_of[places]]
    inputs = [
        torch.as_tensor(part, dtype=torch.float32, device=device)
        for part in (residual, draws, codes, features)
        if part is not None
    ]
    module.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        # torch warns that hooks see no gradient for the inputs (records); none is wanted.
        warnings.filterwarnings("ignore", message=".*non-full backward hook.*")
        warnings.filterwarnings("ignore", message=".*Full backward hook is firing.*")
        module(inputs[0], torch.as_tensor(labels, device=device), *inputs[1:]).sum().backward()
    parts = [p.grad_sample.reshape(len(places), -1) for p in module.parameters()]
    return torch.cat(parts, dim=1).double().cpu().numpy()
