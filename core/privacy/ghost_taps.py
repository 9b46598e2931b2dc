"""One tile of records: from taps and their gradients to norms, and to weighted sums.

Per-record gradients are products of short vectors and never written out. At a tap with input a_i
and gradient delta_i, a linear layer's gradient is delta_i [a_i; 1]^T; that of a head, which is
linear in u and generates values whose gradient is Gamma_i, is Gamma_i [u; 1]^T. Hence

    |delta a^T|^2 = |delta|^2 |a|^2
    <delta_i a_i^T, delta_j a_j^T> = <delta_i, delta_j> <a_i, a_j>

for a record's squared norm and for the Gram matrix of a unit's records. Norms, Gram matrices and
sums are float64: a product of two float32 numbers is exact there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from core.models.architecture import Architecture, group_of
from core.models.grouped import (
    Span,
    Tap,
    Tape,
    Weights,
    low_rank_factors,
    low_rank_inner,
)
from core.privacy.ghost_sums import Sums
from core.privacy.ghost_trunk import Trunk

# Gradients at u are made from this many numbers between two products at a time.
_FOLD_NUMBERS = 1 << 22


class Scratch:
    """Float64 copies of a tile's vectors, in memory that the next tile uses again.

    Fresh memory of this size would come from the operating system, page by page, for each tile.
    """

    def __init__(self) -> None:
        self._slots: dict[str, Tensor] = {}

    def wide(self, slot: str, values: Tensor) -> Tensor:
        """``values`` in float64, until the slot is used again; class ids [B] as they are."""
        if values.dtype == torch.int64:
            return values
        if slot not in self._slots or self._slots[slot].shape != values.shape:
            self._slots[slot] = torch.empty_like(values, dtype=torch.float64)
        return self._slots[slot].copy_(values)


@dataclass(frozen=True, eq=False)
class Model:
    """What all tiles of a sum share. ``generated`` as from ``core.models.grouped.generate``."""

    network: Architecture
    weights: Weights
    generated: Mapping[str, Tensor]
    trunk: Trunk
    scratch: Scratch = field(default_factory=Scratch)


@dataclass(frozen=True, eq=False)
class Product:
    """One block's gradient of each record: left_i (x) [right_i; 1], times sqrt(times_i).

    ``group`` of blocks; ``left`` [B, m]; ``right`` [B, n] or None (then left alone), float64;
    ``bias``: a 1 is appended to right; ``times`` [B], |u|^2 (+ 1) of a head; ``labels`` [B] if the
    gradient lies in the column of the record's class.
    """

    group: str
    left: Tensor
    right: Tensor | None = None
    bias: bool = False
    times: Tensor | None = None
    labels: Tensor | None = None

    def gram(self) -> Tensor:
        """[B, B] inner products of gradients; right for records under one code."""
        result = self.left @ self.left.T
        if self.right is not None:
            result = result * (self.right @ self.right.T + float(self.bias))
        if self.labels is not None:
            result = result * (self.labels[:, None] == self.labels[None, :])
        return result if self.times is None else result * self.times[:, None]


class TileTaps:
    """A tile after its backward pass: at every tap what went in and what comes back, in float64.

    ``spans``, ``owner`` [B]: which of its records are under which code.
    """

    def __init__(
        self, model: Model, spans: Sequence[Span], owner: Tensor, tape: Tape, loss: Tensor
    ) -> None:
        self._model, self._spans, self._owner = model, spans, owner
        # ``loss`` is the sum of the records': row i of a gradient depends on record i only.
        deltas = torch.autograd.grad(loss, [tap.output for tap in tape.taps])
        # Reduced precision ends here.
        dtype = model.weights["trunk.0.weight"].dtype
        self._taps = tape.taps
        self._pairs = [
            (tap.inputs if tap.kind == "table" else tap.inputs.to(dtype), delta.to(dtype))
            for tap, delta in zip(tape.taps, deltas, strict=True)
        ]
        for index, tap in enumerate(self._taps):
            if tap.kind == "film":  # the gradients at scale and shift are all it needs
                inputs, delta = self._pairs[index]
                self._pairs[index] = (inputs * delta, delta)
        self._low_rank = {
            index: self._inner_and_outer(tap, *self._pairs[index])
            for index, tap in enumerate(self._taps)
            if tap.kind == "lowrank"
        }
        self._upstream = self._fold().double()
        wide = model.scratch.wide
        self._pairs = [
            (wide(f"inputs {index}", inputs), wide(f"deltas {index}", delta))
            for index, (inputs, delta) in enumerate(self._pairs)
        ]
        self._low_rank = {
            index: (inner.double(), outer.double())
            for index, (inner, outer) in self._low_rank.items()
        }

    def _inner_and_outer(self, tap: Tap, inputs: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """(V^T [a; 1], U^T delta), both [B, rank], under each record's code."""
        left, right = low_rank_factors(self._model.network, self._model.generated, int(tap.name))
        inner = low_rank_inner(right, inputs, self._owner).sum(1)
        outer = (delta @ left.reshape(-1, left.shape[2]).T).view(len(delta), *left.shape[:2])
        return inner, outer[torch.arange(len(delta), device=delta.device), self._owner]

    def _fold(self) -> Tensor:
        """c [B, t], gradients at u: each head's weights transposed, times what its values get."""
        network, weights = self._model.network, self._model.weights
        width = network.trunk[-1]
        total = self._pairs[0][1].new_zeros(len(self._owner), width)
        for index, tap in enumerate(self._taps):
            inputs, delta = self._pairs[index]
            match tap.kind:
                case "table" if tap.name == "prior":
                    head = weights["heads.prior.weight"].view(network.classes, -1, width)
                    shift = delta[:, None, : network.latent_dim]
                    total += torch.bmm(shift, head[inputs])[:, 0]
                case "film":
                    head = weights[f"heads.film_{tap.name}.weight"]
                    half = delta.shape[1]
                    total.addmm_(inputs, head[:half]).addmm_(delta, head[half:])
                case "full":
                    total.addmm_(delta, weights[f"heads.bias_{tap.name}.weight"])
                    total += bilinear(weights[f"heads.weight_{tap.name}.weight"], delta, inputs)
                case "lowrank":
                    inner, outer = self._low_rank[index]
                    total += bilinear(weights[f"heads.left_{tap.name}.weight"], delta, inner)
                    head = weights[f"heads.right_{tap.name}.weight"]
                    total += bilinear(head[: -network.rank], inputs, outer)
                    total.addmm_(outer, head[-network.rank :])
                case _:
                    pass  # shared by all codes: nothing of it is generated
        return total

    def keep(self, rows: Tensor) -> None:
        """Set everything of records outside ``rows`` [B] to 0."""

        def kept(values: Tensor) -> Tensor:
            if values.dtype == torch.int64:
                return values
            return torch.where(rows[:, None], values, 0.0)

        self._pairs = [(kept(inputs), kept(delta)) for inputs, delta in self._pairs]
        self._low_rank = {
            index: (kept(inner), kept(outer)) for index, (inner, outer) in self._low_rank.items()
        }
        self._upstream = kept(self._upstream)
        self.__dict__.pop("products", None)

    @cached_property
    def products(self) -> list[Product]:
        """The gradients of all blocks, each record's."""
        plain = self._model.trunk.squares[self._owner]
        biased = plain + 1.0
        products: list[Product] = []
        for index, tap in enumerate(self._taps):
            inputs, delta = self._pairs[index]
            match tap.kind:
                case "dense":
                    products.append(Product(group_of(tap.name), delta, inputs, bias=True))
                case "table":
                    products.append(Product(tap.name, delta, labels=inputs))
                    if tap.name == "prior":
                        shift = delta[:, : self._model.network.latent_dim]
                        products.append(Product("heads", shift, times=plain, labels=inputs))
                case "film":
                    products.append(Product("heads", inputs, times=biased))
                    products.append(Product("heads", delta, times=biased))
                case "full":
                    products.append(Product("heads", delta, inputs, bias=True, times=biased))
                case "lowrank":
                    inner, outer = self._low_rank[index]
                    products += [
                        Product("decoder", delta, inputs, bias=True),
                        Product("heads", delta, inner, times=biased),
                        Product("heads", outer, inputs, bias=True, times=biased),
                    ]
        products += [Product(group, self._rooted(group)) for group in self._model.trunk.roots[0]]
        return products

    def _rooted(self, group: str) -> Tensor:
        """[B, m] c R of each record's code: as long as its gradient in the trunk (or code)."""
        roots = [roots[group] for roots in self._model.trunk.roots]
        out = self._upstream.new_zeros(len(self._owner), max(root.shape[1] for root in roots))
        for code, first, end in self._spans:
            root = roots[code]
            out[first:end, : root.shape[1]] = self._upstream[first:end] @ root
        return out

    def squares(self) -> dict[str, Tensor]:
        """[B] squared norm of each record's gradient, by group of blocks."""
        known: dict[int, Tensor] = {}

        def length(values: Tensor) -> Tensor:
            if id(values) not in known:
                known[id(values)] = torch.linalg.vector_norm(values, dim=1).square_()
            return known[id(values)]

        squares: dict[str, Tensor] = {}
        for product in self.products:
            value = length(product.left)
            if product.right is not None:
                right = length(product.right)
                value = torch.addcmul(value, value, right) if product.bias else value * right
            if product.times is not None:
                value = value * product.times
            group = product.group
            squares[group] = squares[group] + value if group in squares else value
        return squares

    def add_to(self, sums: Sums, factors: Mapping[str, Tensor]) -> None:
        """Add every record's gradients, block by block times its ``factors`` [B] of that group."""
        codes = torch.arange(len(self._model.trunk.outputs), device=self._owner.device)
        own = codes[:, None] == self._owner
        by_code = {group: own * factors[group] for group in ("heads", *sums.trunk)}  # [K, B]
        for index, tap in enumerate(self._taps):
            inputs, delta = self._pairs[index]
            if tap.kind == "dense":
                self._add_dense(sums, tap.name, inputs, delta, factors[group_of(tap.name)])
            elif tap.kind == "table":
                scaled = delta * factors[tap.name][:, None]
                sums.shared[f"{tap.name}.weight"].T.index_add_(0, inputs, scaled)
                if tap.name == "prior":
                    self._add_prior(sums, inputs, delta * factors["heads"][:, None])
            elif tap.kind == "film":
                half, total = delta.shape[1], sums.heads[f"film_{tap.name}"]
                total[:, :half].addmm_(by_code["heads"], inputs)
                total[:, half:].addmm_(by_code["heads"], delta)
            else:
                for span in self._spans:
                    self._add_generated(sums, index, span, factors["heads"])
                if tap.kind == "lowrank":
                    name = f"decoder.{tap.name}"
                    self._add_dense(sums, name, inputs, delta, factors["decoder"])
        for group, total in sums.trunk.items():
            total.addmm_(by_code[group], self._upstream)

    def _add_prior(self, sums: Sums, labels: Tensor, scaled: Tensor) -> None:
        network = self._model.network
        place = sums.heads["prior"].view(-1, network.latent_dim)
        place.index_add_(0, self._owner * network.classes + labels, scaled[:, : network.latent_dim])

    @staticmethod
    def _add_dense(sums: Sums, name: str, inputs: Tensor, delta: Tensor, factors: Tensor) -> None:
        weight, bias = sums.shared[f"{name}.weight"], sums.shared[f"{name}.bias"]
        _add_outer(weight, bias, delta, inputs, factors)

    def _add_generated(self, sums: Sums, index: int, span: Span, factors: Tensor) -> None:
        """Sums of the gradients at what heads generate, over the records of one code."""
        tap, rank, code = self._taps[index], self._model.network.rank, span.code
        part = slice(span.first, span.end)
        factors = factors[part]
        inputs, delta = (values[part] for values in self._pairs[index])
        match tap.kind:
            case "full":
                weight = sums.heads[f"weight_{tap.name}"][code].view(delta.shape[1], -1)
                bias = sums.heads[f"bias_{tap.name}"][code]
                _add_outer(weight, bias, delta, inputs, factors)
            case "lowrank":
                inner, outer = (values[part] for values in self._low_rank[index])
                left = sums.heads[f"left_{tap.name}"][code].view(-1, rank)
                _add_outer(left, None, delta, inner, factors)
                right = sums.heads[f"right_{tap.name}"][code].view(-1, rank)
                _add_outer(right[:-1].T, right[-1], outer, inputs, factors)


def _add_outer(
    total: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, factors: Tensor
) -> None:
    """Add the sum over records of factor * left (x) [right; 1] to ``total`` and ``bias``."""
    if left.shape[1] < right.shape[1]:  # the narrower side is scaled
        left = left * factors[:, None]
        total.addmm_(left.T, right)
        if bias is not None:
            bias += left.sum(0)
    else:
        total.addmm_(left.T, right * factors[:, None])
        if bias is not None:
            bias.addmv_(left.T, factors)


def bilinear(head: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """[B, t] sum over o, i of left_bo head_(oi)k right_bi, for ``head`` [out * in, t].

    One product [B, out] x [out, in t], then one of [1, in] x [in, t] a record: 2 B out in t flops.
    """
    out, into, width = left.shape[1], right.shape[1], head.shape[1]
    wide = head.reshape(out, into * width)
    rows = min(len(left), max(1, _FOLD_NUMBERS // (into * width)))
    room = left.new_empty(rows, into * width)
    parts = []
    for start in range(0, len(left), rows):
        some = left[start : start + rows]
        between = torch.mm(some, wide, out=room[: len(some)]).view(-1, into, width)
        parts.append(torch.bmm(right[start : start + rows, None], between)[:, 0])
    return torch.cat(parts) if len(parts) > 1 else parts[0]
