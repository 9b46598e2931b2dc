"""Clipped sums by opacus and by torch.func, each used as its documentation does: on a whole batch.

Every step gives the clipped sum of all blocks in their order. Codes are expanded to the batch, as
their hooks ask for; a record's loss is the same as ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor
from torch.func import grad, vmap

from benchmarks.clipping.case import Case
from benchmarks.clipping.plan import CLIP_NORM, Opponent
from core.models.grouped import Grouped, Span, generate, trunk_outputs
from core.models.hypernetwork import HyperCVAE
from core.models.losses import Records, record_losses

ClippedSum = Callable[[], list[Tensor]]
_STABLE = 1e-6  # added to norms, as opacus does


def step_of(method: Opponent, made: Case) -> ClippedSum:
    return {"hooks": hooks, "ghost": ghost, "vmap": per_record}[method](made)


def hooks(made: Case) -> ClippedSum:
    """``GradSampleModule``: a gradient a record, then clip and sum as opacus' optimiser does."""
    module = GradSampleModule(_module(made), batch_first=True, loss_reduction="sum")
    inputs = _inputs(made)

    def step() -> list[Tensor]:
        module(*inputs).sum().backward()
        sums = _clipped([parameter.grad_sample for parameter in module.parameters()])
        for parameter in module.parameters():
            parameter.grad_sample = parameter.grad = None
        return sums

    return step


def ghost(made: Case) -> ClippedSum:
    """opacus' ghost clipping: a backward pass for the norms, another for the weighted loss."""
    module = GradSampleModuleFastGradientClipping(
        _module(made), batch_first=True, loss_reduction="sum", max_grad_norm=CLIP_NORM
    )
    inputs = _inputs(made)
    # Of the optimiser, the two passes use only ``zero_grad``.
    optimiser: Any = torch.optim.SGD(module.parameters(), lr=0.0)

    def step() -> list[Tensor]:
        DPTensorFastGradientClipping(module, optimiser, module(*inputs), "sum").backward()
        sums = [parameter.grad for parameter in module.parameters()]
        optimiser.zero_grad(set_to_none=True)
        for parameter in module.parameters():
            parameter._norm_sample = None
        return sums

    return step


def per_record(made: Case) -> ClippedSum:
    """``vmap`` of ``grad`` over records, each through the hypernetwork with its own code."""
    residual, labels, draws, codes = _inputs(made)
    spans = [Span(0, 0, 1)]

    def loss(
        weights: dict[str, Tensor], rho: Tensor, label: Tensor, draw: Tensor, code: Tensor
    ) -> Tensor:
        trunk = trunk_outputs(made.network, weights, code[None])[-1]
        layers = Grouped(made.network, weights, generate(made.network, weights, trunk), spans)
        return record_losses(made.network, layers, Records(rho[None], label[None], draw[None]))[0]

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))

    def step() -> list[Tensor]:
        found = gradients(made.weights, residual, labels, draws, codes)
        return _clipped([found[name] for name, _ in made.network.blocks])

    return step


def _module(made: Case) -> HyperCVAE:
    module = HyperCVAE(made.network)
    module.load(made.weights)
    return module


def _inputs(made: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    records = made.records
    return records.residual, records.labels, records.draws, made.codes[made.code_of]


def _clipped(samples: Sequence[Tensor]) -> list[Tensor]:
    norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples]).norm(dim=0)
    factors = (CLIP_NORM / (norms + _STABLE)).clamp(max=1.0)
    return [torch.einsum("i,i...->...", factors, sample) for sample in samples]
