"""One step without privacy and one of ours, each as a function without arguments.

Neither has an optimiser: a step ends when the gradient, or the clipped sum, of all parameters is
there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.clipping.case import Case
from benchmarks.clipping.plan import CLIP_NORM
from core.models.grouped import Grouped, Span, generate, trunk_outputs
from core.models.losses import Records, record_losses
from core.privacy.clipping import ClipRule
from core.privacy.ghost import HyperModel, clipped_sum
from core.training.compute import tile_rows

Step = Callable[[], object]


def non_private(made: Case) -> Callable[[], list[Tensor]]:
    """Decoders for both codes, the summed loss, and a backward pass to every parameter.

    What comes back are the gradients; nothing keeps them once the caller lets go.
    """
    weights = {name: value.detach().requires_grad_(True) for name, value in made.weights.items()}
    client = int((made.code_of == 0).sum())
    spans = [Span(0, 0, client), Span(1, client, len(made.code_of))]
    spans = [span for span in spans if span.end > span.first]

    def step() -> list[Tensor]:
        trunk = trunk_outputs(made.network, weights, made.codes)[-1]
        layers = Grouped(made.network, weights, generate(made.network, weights, trunk), spans)
        record_losses(made.network, layers, made.records).sum().backward()  # type: ignore[no-untyped-call]
        return _taken(list(weights.values()))

    return step


def ours(made: Case) -> Callable[[], Tensor]:
    """The clipped sum [P], multiplied out, in tiles as a site of the product chooses them."""
    model = HyperModel(made.network, made.weights, made.codes)
    unit_of = np.arange(len(made.code_of))
    tile = tile_rows(made.network, len(unit_of))
    rule = ClipRule(CLIP_NORM)

    def load(rows: NDArray[np.int64]) -> Records:
        # Records lie sorted by code, so a tile's are neighbours.
        some = slice(int(rows[0]), int(rows[-1]) + 1)
        records = made.records
        return Records(records.residual[some], records.labels[some], records.draws[some])

    def step() -> Tensor:
        sums = clipped_sum(model, unit_of, made.code_of, load, rule, tile=tile)
        return sums.vector(torch.float32)

    return step


def bare_product(made: Case) -> Callable[[], list[Tensor]]:
    """[B, out] x [out, in t] of each generated layer: the floor of exact norms in the form full."""
    draw = torch.Generator().manual_seed(1)
    pairs = []
    for layer, (out, _) in enumerate(made.network.decoder_shapes):
        gradient = torch.randn(len(made.code_of), out, generator=draw)
        pairs.append((gradient, made.weights[f"heads.weight_{layer}.weight"].view(out, -1)))

    def step() -> list[Tensor]:
        return [torch.mm(gradient, weight) for gradient, weight in pairs]

    return step


def _taken(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients, which the parameters let go of (``set_to_none``)."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            raise AssertionError("a parameter got no gradient")
        gradients.append(parameter.grad)
        parameter.grad = None
    return gradients
