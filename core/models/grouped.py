"""The hypernetwork CVAE with one generated decoder a code, not one a record.

All records of a client share its code, so trunk and heads run once for each of K codes and records
pick what belongs to theirs. With trainable ``weights`` this is the ordinary, non-private way to
train; with a ``Tape`` it is what ghost clipping watches (``core.privacy.ghost``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from core.models.architecture import Architecture
from core.models.losses import activate

Weights = Mapping[str, Tensor]
# Records in one product with a fully generated layer: few, as one product in each tile is made
# for two codes; enough for the product to be fast.
_PRODUCT_ROWS = 128
TapKind = Literal["dense", "table", "film", "lowrank", "full"]


@dataclass(frozen=True, eq=False)
class Tap:
    """One place of the network: ``inputs`` [B, in] that went in (labels [B] of a table), ``output``
    [B, out] that came out. The gradient of the loss there gives the layer's per-record gradients.
    """

    kind: TapKind
    name: str
    inputs: Tensor
    output: Tensor


class Span(NamedTuple):
    """Records ``first`` .. ``end`` - 1 of a batch are under ``code``."""

    code: int
    first: int
    end: int


def owners(spans: Sequence[Span], device: torch.device) -> Tensor:
    """[B] index of each record's code."""
    codes = torch.tensor([span.code for span in spans])
    return codes.repeat_interleave(torch.tensor([s.end - s.first for s in spans])).to(device)


@dataclass
class Tape:
    """Taps in the order of the forward pass."""

    taps: list[Tap] = field(default_factory=list)

    def watch(self, kind: TapKind, name: str, inputs: Tensor, output: Tensor) -> Tensor:
        """Remember a place; its output starts a graph if nothing before it needs one."""
        if not output.requires_grad:
            output.requires_grad_(True)
        self.taps.append(Tap(kind, name, inputs.detach(), output))
        return output


def trunk_outputs(network: Architecture, weights: Weights, codes: Tensor) -> list[Tensor]:
    """[v, h_1, ..., u]: codes [K, c] and what each layer of the trunk makes of them."""
    values = [codes]
    for layer in range(len(network.trunk)):
        weight, bias = weights[f"trunk.{layer}.weight"], weights[f"trunk.{layer}.bias"]
        values.append(activate(network.activation, functional.linear(values[-1], weight, bias)))
    return values


def generate(network: Architecture, weights: Weights, trunk: Tensor) -> dict[str, Tensor]:
    """What the heads make of trunk outputs [K, t]: name -> [K, size]; and ``prior`` [K, C, z], if
    priors are the classes' own.
    """
    made = {
        name: functional.linear(
            trunk, weights[f"heads.{name}.weight"], weights[f"heads.{name}.bias"]
        )
        for name in network.generated
    }
    if network.prior == "class":
        prior = functional.linear(trunk, weights["heads.prior.weight"])
        made["prior"] = prior.view(-1, network.classes, network.latent_dim)
    return made


class Grouped:
    """``Layers`` of records [B] that belong to K generated decoders.

    ``generated`` as from ``generate``; ``spans`` (code, first, end): records of one code lie
    together; ``owner`` [B] says the same record by record. With a ``tape`` every product has a
    shape that does not depend on the spans, so that a record's values do not depend on how many
    records others have (``core.privacy.ghost``).
    """

    def __init__(
        self,
        network: Architecture,
        weights: Weights,
        generated: Mapping[str, Tensor],
        spans: Sequence[Span],
        tape: Tape | None = None,
    ) -> None:
        self._network, self._weights, self._tape = network, weights, tape
        self._generated, self._spans = generated, spans
        self.owner = owners(spans, weights["trunk.0.weight"].device)

    def _watch(self, kind: TapKind, name: str, inputs: Tensor, output: Tensor) -> Tensor:
        return output if self._tape is None else self._tape.watch(kind, name, inputs, output)

    def _own(self, name: str) -> Tensor:
        """[B, size], or [1, size] under one code: what a head generates for each record's code."""
        if len(self._spans) == 1:
            return self._generated[name][self._spans[0].code, None]
        return self._generated[name][self.owner]

    def _shared(self, name: str, inputs: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.linear(inputs, weight, bias)

    def dense(self, name: str, inputs: Tensor) -> Tensor:
        return self._watch("dense", name, inputs, self._shared(name, inputs))

    def table(self, name: str, labels: Tensor) -> Tensor:
        return self._watch("table", name, labels, self._weights[f"{name}.weight"].T[labels])

    def decoder(self, layer: int, inputs: Tensor) -> Tensor:
        match self._network.form:
            case "film":
                return self.dense(f"decoder.{layer}", inputs)
            case "lowrank":
                left, right = low_rank_factors(self._network, self._generated, layer)
                inner = low_rank_inner(right, inputs, self.owner)
                output = self._shared(f"decoder.{layer}", inputs)
                output = torch.addmm(output, inner.flatten(1), left.reshape(-1, left.shape[2]))
                return self._watch("lowrank", str(layer), inputs, output)
            case "full":
                return self._watch("full", str(layer), inputs, self._full(layer, inputs))

    def _full(self, layer: int, inputs: Tensor) -> Tensor:
        out, into = self._network.decoder_shapes[layer]
        weights = self._generated[f"weight_{layer}"].view(-1, out, into)
        biases = self._generated[f"bias_{layer}"]
        if self._tape is None:
            parts = [
                functional.linear(inputs[s.first : s.end], weights[s.code], biases[s.code])
                for s in self._spans
            ]
            return torch.cat(parts)
        rows = _PRODUCT_ROWS if len(inputs) % _PRODUCT_ROWS == 0 else len(inputs)
        parts = []
        for index, part in enumerate(torch.split(inputs, rows)):
            begin = index * rows
            within = [s for s in self._spans if s.first < begin + rows and s.end > begin]
            first, *others = within
            output = functional.linear(part, weights[first.code], biases[first.code])
            for span in others:
                other = functional.linear(part, weights[span.code], biases[span.code])
                mine = self.owner[begin : begin + rows, None] == span.code
                output = torch.where(mine, other, output)
            parts.append(output)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def modulate(self, layer: int, hidden: Tensor) -> Tensor:
        if self._network.form != "film":
            return hidden
        scale, shift = self._own(f"film_{layer}").chunk(2, dim=1)
        return self._watch("film", str(layer), hidden, torch.addcmul(hidden + shift, hidden, scale))

    def prior_shift(self, labels: Tensor) -> Tensor:
        return self._generated["prior"][self.owner, labels]


def low_rank_factors(
    network: Architecture, generated: Mapping[str, Tensor], layer: int
) -> tuple[Tensor, Tensor]:
    """(U^T [K, rank, out], V^T [K, rank, in + 1]) of a layer; V's last row meets the bias.

    Heads give U and V; transposed, all codes' factors meet a batch in one product.
    """
    out, into = network.decoder_shapes[layer]
    left = generated[f"left_{layer}"].view(-1, out, network.rank)
    right = generated[f"right_{layer}"].view(-1, into + 1, network.rank)
    return left.transpose(1, 2), right.transpose(1, 2)


def low_rank_inner(right: Tensor, inputs: Tensor, owner: Tensor) -> Tensor:
    """[B, K, rank] V^T [inputs; 1], zero except under each record's own code."""
    codes, rank, _ = right.shape
    flat = right.reshape(codes * rank, -1)
    inner = torch.addmm(flat[:, -1], inputs, flat[:, :-1].T).view(-1, codes, rank)
    return inner * (owner[:, None, None] == torch.arange(codes, device=owner.device)[:, None])
