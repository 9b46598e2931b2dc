"""Weighted sums of per-record gradients, kept in the factored form in which they arise.

The sum over records of f_i Gamma_i u_k^T is G_k u_k^T with G_k = sum of f_i Gamma_i: heads need one
G_k for each code k, not a gradient as large as their weights. ``Sums.vector`` multiplies out.
Sums are float64: of n terms no longer than C each, rounding moves the total by n^2 C 2^-53 at most.
For batches of up to 46,000 records that is within the margin that clip factors leave
(``core.privacy.clipping.ROUNDING``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from core.models.architecture import Architecture, group_of
from core.privacy.ghost_trunk import Trunk

_DERIVED = {"trunk", "heads", "code"}  # groups whose sums are kept factored


class Sums:
    """Float64 sums of gradients over records of K codes, by block.

    ``shared``: name -> the block's shape; ``heads``: head -> [K, ...], the sums of gradients at
    what it generates; ``trunk``: ``trunk`` and ``code`` -> [K, t], the sums of gradients at u (two
    of them, as trunk and code may be clipped apart).
    """

    def __init__(self, network: Architecture, trunk: Trunk) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=trunk.outputs.device)

        self.network, self._trunk = network, trunk
        codes = len(trunk.outputs)
        shared = [(name, shape) for name, shape in network.blocks if group_of(name) not in _DERIVED]
        sizes = [math.prod(shape) for _, shape in shared]
        # Neighbours in the flat vector, so that one copy moves them there.
        self._flat = zeros(sum(sizes))
        self.shared = {
            name: part.view(shape)
            for (name, shape), part in zip(shared, torch.split(self._flat, sizes), strict=True)
        }
        self.heads = {
            # A low-rank factor's codes lie beside each other in memory: [size / rank, K, rank].
            name: zeros(size // network.rank, codes, network.rank).transpose(0, 1)
            if network.form == "lowrank"
            else zeros(codes, size)
            for name, size in network.generated.items()
        }
        if network.prior == "class":
            self.heads["prior"] = zeros(codes, network.classes * network.latent_dim)
        groups = ["trunk", "code"] if network.trains_code else ["trunk"]
        self.trunk = {group: zeros(codes, network.trunk[-1]) for group in groups}

    def _by_group(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((group_of(name), value) for name, value in self.shared.items())
        yield from (("heads", value) for value in self.heads.values())
        yield from self.trunk.items()

    def squares(self, code: int) -> dict[str, float]:
        """Squared norm of each group's blocks, if records of ``code`` only were added."""
        squares = dict.fromkeys(self.network.groups, 0.0)
        for name, value in self.shared.items():
            squares[group_of(name)] += float(value.square().sum())
        for name, value in self.heads.items():
            times = float(self._trunk.squares[code]) + (name != "prior")
            squares["heads"] += times * float(value[code].square().sum())
        for group, value in self.trunk.items():
            squares[group] += float((value[code] @ self._trunk.roots[code][group]).square().sum())
        return squares

    def add(self, other: Sums, factors: Mapping[str, float]) -> None:
        """Add ``other`` times the factor of each group."""
        pairs = zip(self._by_group(), other._by_group(), strict=True)
        for (group, mine), (_, value) in pairs:
            mine.add_(value, alpha=factors[group])

    def vector(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The sum as one flat vector [P] in the order of ``network.blocks``."""
        trunk = self._trunk
        out = torch.empty(self.network.size, dtype=dtype, device=trunk.outputs.device)
        derived = trunk.gradients(self.trunk)
        start = 0
        for name, shape in self.network.blocks:
            place = out[start : start + math.prod(shape)]
            if name in self.shared:
                if name == next(iter(self.shared)):
                    out[start : start + len(self._flat)].copy_(self._flat)
                start += len(place)
                continue
            start += len(place)
            if name in derived:
                place.copy_(derived[name].flatten())
                continue
            sums = self.heads[name.split(".")[1]].flatten(1)
            if name.endswith(".bias"):
                place.copy_(sums.sum(0))
                continue
            torch.mm(sums.T.to(dtype), trunk.outputs.to(dtype), out=place.view(shape))
        return out
