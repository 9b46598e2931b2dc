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
from typing import NamedTuple

import torch
from torch import Tensor

from core.models.architecture import Architecture, group_of
from core.models.grouped import (
    Span,
    Tap,
    Tape,
    TapKind,
    Weights,
    low_rank_factors,
    low_rank_inner,
)
from core.models.losses import one_hot
from core.privacy.ghost_sums import Sums
from core.privacy.ghost_trunk import Trunk

# Gradients at u are made from this many numbers between two products at a time.
_FOLD_NUMBERS = 1 << 22
# Numbers that are widened to float64 at a time.
_WIDE_NUMBERS = 1 << 17


class Scratch:
    """Float64 copies of a few rows at a time, in memory that is used again and again.

    Fresh memory would come from the operating system, page by page, each time; copies of whole
    tiles would be twice as large as the tiles.
    """

    def __init__(self) -> None:
        self._slots: dict[str, Tensor] = {}

    def wide(self, slot: str, values: Tensor) -> Tensor:
        """``values`` [n, w] in float64, until the slot is used again."""
        if slot not in self._slots or self._slots[slot].numel() < values.numel():
            self._slots[slot] = values.new_empty(values.numel(), dtype=torch.float64)
        return self._slots[slot][: values.numel()].view(values.shape).copy_(values)


def pieces(rows: int, width: int) -> list[slice]:
    """Rows that are widened at once: slices of equal length, as few as memory allows."""
    most = max(32, _WIDE_NUMBERS // width)
    return [slice(first, min(rows, first + most)) for first in range(0, rows, most)]


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

    ``group`` of blocks; ``left`` [B, m]; ``right`` [B, n] or None (then left alone);
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
        """[B, B] float64 inner products of gradients; right for records under one code."""
        left = self.left.double()
        result = left @ left.T
        if self.right is not None:
            right = self.right.double()
            result = result * (right @ right.T + float(self.bias))
        if self.labels is not None:
            result = result * (self.labels[:, None] == self.labels[None, :])
        return result if self.times is None else result * self.times[:, None]


class Passed(NamedTuple):
    """A tap after the backward pass: ``inputs`` [B, in] that went in (labels [B] of a table; for
    film the gradients at its scales, which are all that it needs), ``delta`` [B, out] that came
    back.
    """

    kind: TapKind
    name: str
    inputs: Tensor
    delta: Tensor


class TileTaps:
    """A tile after its backward pass: at every tap what went in and what came back.

    ``spans``, ``owner`` [B]: which of its records are under which code.
    """

    def __init__(
        self, model: Model, spans: Sequence[Span], owner: Tensor, tape: Tape, loss: Tensor
    ) -> None:
        self._model, self._spans, self._owner = model, spans, owner
        # ``loss`` is the sum of the records': row i of a gradient depends on record i only.
        deltas = torch.autograd.grad(loss, [tap.output for tap in tape.taps])
        dtype = model.weights["trunk.0.weight"].dtype  # reduced precision ends here
        self._taps = [
            _passed(tap, delta.to(dtype)) for tap, delta in zip(tape.taps, deltas, strict=True)
        ]
        tape.taps.clear()  # lets go of the outputs
        self._low_rank = {
            tap.name: self._inner_and_outer(tap) for tap in self._taps if tap.kind == "lowrank"
        }
        self._upstream = self._fold().double()

    def _inner_and_outer(self, tap: Passed) -> tuple[Tensor, Tensor]:
        """(V^T [a; 1], U^T delta), both [B, rank], under each record's code."""
        left, right = low_rank_factors(self._model.network, self._model.generated, int(tap.name))
        inner = low_rank_inner(right, tap.inputs, self._owner).sum(1)
        rows = len(self._owner)
        outer = (tap.delta @ left.reshape(-1, left.shape[2]).T).view(rows, *left.shape[:2])
        return inner, outer[torch.arange(rows, device=outer.device), self._owner]

    def _fold(self) -> Tensor:
        """c [B, t], gradients at u: each head's weights transposed, times what its values get."""
        network, weights = self._model.network, self._model.weights
        width = network.trunk[-1]
        total = self._taps[0].delta.new_zeros(len(self._owner), width)
        for kind, name, inputs, delta in self._taps:
            match kind:
                case "table" if name == "prior":
                    head = weights["heads.prior.weight"]
                    total += by_class(head, delta[:, : network.latent_dim], inputs)
                case "film":
                    head = weights[f"heads.film_{name}.weight"]
                    half = delta.shape[1]
                    total.addmm_(inputs, head[:half]).addmm_(delta, head[half:])
                case "full":
                    total.addmm_(delta, weights[f"heads.bias_{name}.weight"])
                    total += bilinear(weights[f"heads.weight_{name}.weight"], delta, inputs)
                case "lowrank":
                    inner, outer = self._low_rank[name]
                    total += bilinear(weights[f"heads.left_{name}.weight"], delta, inner)
                    head = weights[f"heads.right_{name}.weight"]
                    total += bilinear(head[: -network.rank], inputs, outer)
                    total.addmm_(outer, head[-network.rank :])
                case _:
                    pass  # shared by all codes: nothing of it is generated
        return total

    def by_record(self) -> list[Tensor]:
        """[B, ...] each: all that was computed in the precision of layers, record by record."""
        passed = [part for tap in self._taps for part in (tap.inputs, tap.delta)]
        inner_and_outer = [part for pair in self._low_rank.values() for part in pair]
        return [*passed, *inner_and_outer, self._upstream]

    def keep(self, rows: Tensor) -> None:
        """Set everything of records outside ``rows`` [B] to 0."""

        def kept(values: Tensor) -> Tensor:
            if values.dtype == torch.int64:
                return values
            return torch.where(rows[:, None], values, 0.0)

        self._taps = [
            Passed(kind, name, kept(inputs), kept(delta))
            for kind, name, inputs, delta in self._taps
        ]
        self._low_rank = {
            name: (kept(inner), kept(outer)) for name, (inner, outer) in self._low_rank.items()
        }
        self._upstream = kept(self._upstream)

    def products(self) -> list[Product]:
        """The gradients of all blocks, each record's."""
        plain = self._model.trunk.squares[self._owner]
        biased = plain + 1.0
        products: list[Product] = []
        for kind, name, inputs, delta in self._taps:
            match kind:
                case "dense":
                    products.append(Product(group_of(name), delta, inputs, bias=True))
                case "table":
                    products.append(Product(name, delta, labels=inputs))
                    if name == "prior":
                        shift = delta[:, : self._model.network.latent_dim]
                        products.append(Product("heads", shift, times=plain, labels=inputs))
                case "film":
                    products.append(Product("heads", inputs, times=biased))
                    products.append(Product("heads", delta, times=biased))
                case "full":
                    products.append(Product("heads", delta, inputs, bias=True, times=biased))
                case "lowrank":
                    inner, outer = self._low_rank[name]
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
        products = self.products()

        def length(values: Tensor) -> Tensor:
            if id(values) not in known:
                known[id(values)] = self._row_squares(values)
            return known[id(values)]

        squares: dict[str, Tensor] = {}
        for product in products:
            value = length(product.left)
            if product.right is not None:
                right = length(product.right)
                value = torch.addcmul(value, value, right) if product.bias else value * right
            if product.times is not None:
                value = value * product.times
            group = product.group
            squares[group] = squares[group] + value if group in squares else value
        return squares

    def _row_squares(self, values: Tensor) -> Tensor:
        """[B] float64 squared lengths of rows."""
        parts = [
            torch.linalg.vector_norm(self._model.scratch.wide("left", values[rows]), dim=1)
            for rows in pieces(*values.shape)
        ]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).square_()

    def add_to(self, sums: Sums, factors: Mapping[str, Tensor]) -> None:
        """Add every record's gradients, block by block times its ``factors`` [B] of that group.

        Once only: what was added is let go of, so that sums take the place of the tile in memory.
        """
        codes = torch.arange(len(self._model.trunk.outputs), device=self._owner.device)
        own = codes[:, None] == self._owner
        by_code = {group: own * factors[group] for group in ("heads", *sums.trunk)}  # [K, B]
        for group, total in sums.trunk.items():
            total.addmm_(by_code[group], self._upstream)
        while self._taps:
            self._add_tap(sums, self._taps.pop(), factors, by_code["heads"])

    def _add_tap(
        self, sums: Sums, tap: Passed, factors: Mapping[str, Tensor], by_code: Tensor
    ) -> None:
        kind, name, inputs, delta = tap
        match kind:
            case "dense":
                self._add_dense(sums, name, inputs, delta, factors[group_of(name)])
            case "table":
                scaled = delta * factors[name][:, None]
                sums.shared[f"{name}.weight"].T.index_add_(0, inputs, scaled)
                if name == "prior":
                    self._add_prior(sums, inputs, delta * factors["heads"][:, None])
            case "film":
                half, total = delta.shape[1], sums.heads[f"film_{name}"]
                total[:, :half].addmm_(by_code, inputs.double())
                total[:, half:].addmm_(by_code, delta.double())
            case "full":
                for code, first, end in self._spans:
                    part = slice(first, end)
                    weight = sums.heads[f"weight_{name}"][code].view(delta.shape[1], -1)
                    bias = sums.heads[f"bias_{name}"][code]
                    some = factors["heads"][part]
                    self._add_outer(weight, bias, delta[part], inputs[part], some)
            case "lowrank":
                self._add_low_rank(sums, tap, factors["decoder"], by_code)

    def _add_prior(self, sums: Sums, labels: Tensor, scaled: Tensor) -> None:
        network = self._model.network
        place = sums.heads["prior"].view(-1, network.latent_dim)
        place.index_add_(0, self._owner * network.classes + labels, scaled[:, : network.latent_dim])

    def _add_dense(
        self, sums: Sums, name: str, inputs: Tensor, delta: Tensor, factors: Tensor
    ) -> None:
        weight, bias = sums.shared[f"{name}.weight"], sums.shared[f"{name}.bias"]
        self._add_outer(weight, bias, delta, inputs, factors)

    def _add_low_rank(self, sums: Sums, tap: Passed, factors: Tensor, by_code: Tensor) -> None:
        """Shared weight, bias and both factors of a layer: its vectors are widened once."""
        wide = self._model.scratch.wide
        weight = sums.shared[f"decoder.{tap.name}.weight"]
        bias = sums.shared[f"decoder.{tap.name}.bias"]
        left, right = (
            sums.heads[f"{side}_{tap.name}"].transpose(0, 1).flatten(1)
            for side in ("left", "right")
        )
        own = by_code.T[:, :, None]
        inner, outer = ((own * part[:, None]).flatten(1) for part in self._low_rank[tap.name])
        for rows in pieces(len(factors), max(weight.shape)):
            delta, inputs = wide("left", tap.delta[rows]), wide("right", tap.inputs[rows])
            weight.addmm_(delta.T, inputs * factors[rows, None])
            bias.addmv_(delta.T, factors[rows])
            left.addmm_(delta.T, inner[rows])
            right[:-1].addmm_(inputs.T, outer[rows])
        right[-1] += outer.sum(0)

    def _add_outer(
        self, total: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, factors: Tensor
    ) -> None:
        """Add the sum over records of factor * left (x) [right; 1] to ``total`` and ``bias``."""
        wide = self._model.scratch.wide
        for rows in pieces(len(left), max(left.shape[1], right.shape[1])):
            some = factors[rows]
            if left.shape[1] < right.shape[1]:  # the narrower side is scaled
                scaled = left[rows] * some[:, None]
                total.addmm_(scaled.T, wide("right", right[rows]))
                if bias is not None:
                    bias += scaled.sum(0)
            else:
                widened = wide("left", left[rows])
                total.addmm_(widened.T, right[rows] * some[:, None])
                if bias is not None:
                    bias.addmv_(widened.T, some)


def _passed(tap: Tap, delta: Tensor) -> Passed:
    if tap.kind == "table":
        return Passed(tap.kind, tap.name, tap.inputs, delta)
    inputs = tap.inputs.to(delta.dtype)
    return Passed(tap.kind, tap.name, inputs * delta if tap.kind == "film" else inputs, delta)


def by_class(head: Tensor, values: Tensor, labels: Tensor) -> Tensor:
    """[B, t] sum over z of values_bz head_(y_b z)k, for ``head`` [C * z, t] and labels y [B]."""
    latent, width = values.shape[1], head.shape[1]
    classes = len(head) // latent
    if classes < width:  # values moved to their class's place are the smaller intermediate
        placed = one_hot(labels, classes)[:, :, None] * values[:, None]
        return placed.flatten(1) @ head
    return torch.bmm(values[:, None], head.view(classes, latent, width)[labels])[:, 0]


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
