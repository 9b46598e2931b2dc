"""Sizes and parameter blocks of the hypernetwork CVAE, in any of its forms. Pure Python.

The trunk turns a code v [c] into u [t]; heads linear in u generate what is particular to a client:

========  =======================================================================================
form      generated from u, for each layer of the decoder
========  =======================================================================================
film      scale and shift of a layer's hidden units; weights and biases are shared
lowrank   two factors whose product is added to a shared weight and its bias
full      every weight and bias (the form of the FedHypeVAE abstract)
========  =======================================================================================

and, in all forms, a shift of each class's prior mean, unless the prior is N(0, I) for all.
``blocks`` is the flat vector's order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from core.federation.plan import ModelPlan, RunSpec

Form = Literal["film", "lowrank", "full"]
Activation = Literal["tanh", "relu", "gelu", "silu"]
Conditioning = Literal["concat", "embedding"]
Prior = Literal["class", "standard"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """One hypernetwork CVAE.

    ``inputs`` r: coordinates of a record as encoder and decoder see it. ``trunk``, ``decoder``
    and ``encoder`` are widths of hidden layers, at least one each; ``classifier`` those of the
    auxiliary classifier over ``classifier_inputs`` features ((): linear; None: no such head).
    ``rank`` belongs to the form ``lowrank``, ``conditioning_dim`` to conditioning by embedding.
    ``prior`` of latent vectors: trained for each class and shifted by the code, or N(0, I).
    With ``trains_code`` the client's code is a parameter as well.
    """

    form: Form
    inputs: int
    classes: int
    code_dim: int
    trunk: tuple[int, ...]
    latent_dim: int
    decoder: tuple[int, ...]
    encoder: tuple[int, ...]
    rank: int = 4
    activation: Activation = "tanh"
    conditioning: Conditioning = "concat"
    conditioning_dim: int = 8
    beta: float = 1.0
    prior: Prior = "class"
    classifier: tuple[int, ...] | None = None
    classifier_inputs: int = 0
    trains_code: bool = False

    def __post_init__(self) -> None:
        for name in ("trunk", "decoder", "encoder"):
            if not getattr(self, name):
                raise ValueError(f"{name}: needs at least one layer")
        if self.classifier is not None and self.classifier_inputs < 1:
            raise ValueError("classifier_inputs: a classifier needs features")

    @property
    def condition_dim(self) -> int:
        """Width of what tells encoder and decoder the class."""
        return self.classes if self.conditioning == "concat" else self.conditioning_dim

    @property
    def trunk_shapes(self) -> list[tuple[int, int]]:
        """[out, in] of the trunk's layers."""
        return _chain((self.code_dim, *self.trunk))

    @property
    def decoder_shapes(self) -> list[tuple[int, int]]:
        """[out, in] of the decoder's layers; the last one gives the record's coordinates."""
        return _chain((self.latent_dim + self.condition_dim, *self.decoder, self.inputs))

    @property
    def encoder_shapes(self) -> list[tuple[int, int]]:
        """[out, in] of the encoder's layers; the last one gives posterior means and log stds."""
        return _chain((self.inputs + self.condition_dim, *self.encoder, 2 * self.latent_dim))

    @property
    def classifier_shapes(self) -> list[tuple[int, int]]:
        """[out, in] of the auxiliary classifier's layers; none without that head."""
        if self.classifier is None:
            return []
        return _chain((self.classifier_inputs, *self.classifier, self.classes))

    @cached_property
    def generated(self) -> dict[str, int]:
        """Heads of the hypernetwork: how many numbers each one generates for a code."""
        heads = {}
        for layer, (out, into) in enumerate(self.decoder_shapes):
            if self.form == "film" and layer < len(self.decoder):
                heads[f"film_{layer}"] = 2 * out
            if self.form == "lowrank":
                heads[f"left_{layer}"] = out * self.rank
                heads[f"right_{layer}"] = (into + 1) * self.rank
            if self.form == "full":
                heads[f"weight_{layer}"] = out * into
                heads[f"bias_{layer}"] = out
        return heads

    @cached_property
    def blocks(self) -> tuple[tuple[str, Shape], ...]:
        """(name, shape) of every trainable block in the order of the flat vector."""
        blocks: list[tuple[str, Shape]] = _dense("trunk", self.trunk_shapes)
        width = self.trunk[-1]
        for name, size in self.generated.items():
            blocks += [(f"heads.{name}.weight", (size, width)), (f"heads.{name}.bias", (size,))]
        if self.prior == "class":
            # No bias: the table of priors is its bias.
            blocks.append(("heads.prior.weight", (self.classes * self.latent_dim, width)))
            blocks.append(("prior.weight", (2 * self.latent_dim, self.classes)))
        if self.conditioning == "embedding":
            blocks.append(("conditioning.weight", (self.conditioning_dim, self.classes)))
        if self.form != "full":
            blocks += _dense("decoder", self.decoder_shapes)
        blocks += _dense("encoder", self.encoder_shapes)
        blocks += _dense("classifier", self.classifier_shapes)
        if self.trains_code:
            blocks.append(("code.weight", (self.code_dim, 1)))
        return tuple(blocks)

    @property
    def size(self) -> int:
        """Trainable numbers, P."""
        return sum(math.prod(shape) for _, shape in self.blocks)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of blocks in their order: trunk, heads, prior, ..."""
        return tuple(dict.fromkeys(group_of(name) for name, _ in self.blocks))


def group_of(block: str) -> str:
    """The group of a block: the first part of its name."""
    return block.partition(".")[0]


def _chain(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(out, into) for into, out in pairwise(widths)]


def _dense(name: str, shapes: list[tuple[int, int]]) -> list[tuple[str, Shape]]:
    blocks: list[tuple[str, Shape]] = []
    for layer, (out, into) in enumerate(shapes):
        blocks += [(f"{name}.{layer}.weight", (out, into)), (f"{name}.{layer}.bias", (out,))]
    return blocks


def architecture_of(spec: RunSpec) -> Architecture:
    """The architecture of a run's model."""
    return from_plan(spec.plan.model, spec.space.dim, len(spec.space.classes))


def from_plan(model: ModelPlan, dim: int, classes: int) -> Architecture:
    """The architecture of a plan's model in a space of so many dimensions and classes."""
    return Architecture(
        form=model.form,
        inputs=min(model.basis_rank, dim),
        classes=classes,
        code_dim=model.code_dim,
        trunk=(model.trunk_width,) * model.trunk_layers,
        latent_dim=model.latent_dim,
        decoder=(model.hidden,) * model.hidden_layers,
        encoder=(model.encoder_hidden,) * model.encoder_layers,
        rank=model.lowrank,
        activation=model.activation,
        conditioning=model.conditioning,
        conditioning_dim=model.conditioning_dim,
        beta=model.beta,
        classifier=() if model.classifier == "linear" else None,
        classifier_inputs=dim if model.classifier == "linear" else 0,
        trains_code=model.codes == "trained",
        prior=model.prior,
    )
