"""Does this machine compute a record the same way wherever it lies in a tile?

Ghost clipping needs that (fact 1 of ``core.privacy.ghost``): when one unit is removed, all records
behind it move up, and if a record's float32 values then changed in their last bits, n records
together would move by up to n roundings, beyond what the clip norm allows. Products of one shape
are row by row on many processors. On others, the kernel of a product treats the rows of a remainder
differently: found on an AVX2 machine, for layers of odd widths. So it is not assumed but tried,
with the very shapes and activations of a run, and where it does not hold the layers are computed
in float64: there the same effect is n * 1e-16, which the margin of clip factors covers many times.

The trial reads no record: its inputs are drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from core.models.architecture import Architecture
from core.models.grouped import Grouped, Span, Tape, generate
from core.models.losses import Records, record_losses
from core.privacy.ghost_taps import Model, TileTaps
from core.privacy.ghost_trunk import Trunk

_SEED = 20260101
# Enough for a row to come by every place of a kernel with numbers that round differently there.
_WEIGHTS, _ORDERS = 2, 6


@lru_cache(maxsize=64)
def rows_are_alike(
    network: Architecture, tile: int, device: str, dtype: torch.dtype, reduced: bool, threads: int
) -> bool:
    """Whether all that is computed of records is, bit by bit, the same elsewhere in the tile.

    ``threads`` only names the setting under which the answer holds.
    """
    draw = torch.Generator().manual_seed(_SEED)
    half = tile // 2
    arrangements = [[Span(0, 0, tile)]]
    if half:  # records under both codes in one tile
        arrangements.append([Span(0, 0, half), Span(1, half, tile)])
    return all(
        _tried(network, spans, device, dtype, reduced, draw)
        for spans in arrangements
        for _ in range(_WEIGHTS)
    )


def _tried(
    network: Architecture,
    spans: Sequence[Span],
    device: str,
    dtype: torch.dtype,
    reduced: bool,
    draw: torch.Generator,
) -> bool:
    """One set of weights and records, in several orders within each code's span."""
    tile = spans[-1].end

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(device, dtype)

    weights = {name: 0.5 * normal(*shape) for name, shape in network.blocks}
    labels = torch.randint(network.classes, (tile,), generator=draw).to(device)
    features = normal(tile, network.classifier_inputs) if network.classifier is not None else None
    records = Records(
        normal(tile, network.inputs), labels, normal(tile, network.latent_dim), features
    )
    codes = normal(2, network.code_dim)
    with torch.no_grad():
        trunk = Trunk(network, weights, codes, None)
        made = generate(network, weights, trunk.outputs.to(dtype))
    model = Model(network, weights, made, trunk)

    def taps(order: Tensor) -> list[Tensor]:
        tape = Tape()
        layers = Grouped(network, weights, made, spans, tape)
        with (
            torch.enable_grad(),
            torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=reduced),
        ):
            loss = record_losses(network, layers, _in_order(records, order)).sum()
        with torch.no_grad():
            found = TileTaps(model, spans, layers.owner, tape, loss).by_record()
        return [value[torch.argsort(order)] for value in found]

    here = taps(torch.arange(tile, device=device))
    for _ in range(_ORDERS):
        order = [s.first + torch.randperm(s.end - s.first, generator=draw) for s in spans]
        there = taps(torch.cat(order).to(device))
        if not all(torch.equal(one, other) for one, other in zip(here, there, strict=True)):
            return False
    return True


def _in_order(records: Records, order: Tensor) -> Records:
    features = None if records.features is None else records.features[order]
    return Records(records.residual[order], records.labels[order], records.draws[order], features)
