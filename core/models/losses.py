"""The loss of one record, written once for every way of running the network.

``record_losses`` returns one number a record; every reduction is a sum over that record's own
coordinates, so nothing depends on other records or on how many there are (traps 3 and 6 of
docs/privacy.md). How the layers compute is the caller's: ``core.models.hypernetwork`` expands
codes to the batch (the reference), ``core.models.grouped`` generates once for each code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from core.models.architecture import Activation, Architecture
from core.models.generator import LOG_STD_BOUND


@dataclass(frozen=True, eq=False)
class Records:
    """Inputs of B records.

    ``residual`` rho [B, r] in units of the residual scale, ``labels`` [B] int64, ``draws`` [B, z]
    standard normal, ``features`` [B, f] of the auxiliary classifier (None without one).
    """

    residual: Tensor
    labels: Tensor
    draws: Tensor
    features: Tensor | None = None


class Layers(Protocol):
    """The trainable parts, as the loss calls them."""

    def dense(self, name: str, inputs: Tensor) -> Tensor:
        """A shared layer ``name.weight``, ``name.bias`` on [B, in]: [B, out]."""

    def table(self, name: str, labels: Tensor) -> Tensor:
        """Columns of a class table ``name.weight`` [k, C]: [B, k]."""

    def decoder(self, layer: int, inputs: Tensor) -> Tensor:
        """A layer of the decoder before its activation, under each record's code: [B, out]."""

    def modulate(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden units [B, h] of a decoder layer, scaled and shifted if the form does so."""

    def prior_shift(self, labels: Tensor) -> Tensor:
        """[B, z] shift of the prior mean of each record's class under its code; asked for only if
        priors are the classes' own.
        """


def activate(kind: Activation, values: Tensor) -> Tensor:
    """The activation; gelu is its tanh form, as in ``core.models.generator``."""
    match kind:
        case "tanh":
            return torch.tanh(values)
        case "relu":
            return functional.relu(values)
        case "gelu":
            return functional.gelu(values, approximate="tanh")
        case "silu":
            return functional.silu(values)


def soft_bound(raw: Tensor) -> Tensor:
    """bound * tanh(raw / bound), as in ``core.models.generator``."""
    return LOG_STD_BOUND * torch.tanh(raw / LOG_STD_BOUND)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """[B, C] bool."""
    return labels[:, None] == torch.arange(classes, device=labels.device)


def record_losses(network: Architecture, layers: Layers, records: Records) -> Tensor:
    """[B] 0.5 |rho - decoded|^2 + beta KL(q || prior of its class) (+ cross-entropy)."""
    labels, kind = records.labels, network.activation
    condition = conditions(network, layers, labels, records.residual.dtype)

    seen = torch.cat([records.residual, condition], dim=1)
    for layer in range(len(network.encoder)):
        seen = activate(kind, layers.dense(f"encoder.{layer}", seen))
    posterior = layers.dense(f"encoder.{len(network.encoder)}", seen)
    mean, raw = posterior.chunk(2, dim=1)
    log_std = soft_bound(raw)
    latent = mean + log_std.exp() * records.draws

    decoded = decode(network, layers, latent, condition)
    prior_mean, prior_log_std = class_prior(network, layers, labels, latent)
    gap = log_std - prior_log_std
    distance = ((mean - prior_mean) * (-prior_log_std).exp()).square()
    divergence = (0.5 * ((2.0 * gap).exp() + distance - 1.0) - gap).sum(1)
    error = functional.mse_loss(decoded, records.residual, reduction="none").sum(1)
    losses: Tensor = 0.5 * error + network.beta * divergence
    if network.classifier is None:
        return losses
    return losses + _classification(network, layers, records)


def conditions(network: Architecture, layers: Layers, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, k] what encoder and decoder are told of each record's class."""
    if network.conditioning == "embedding":
        return layers.table("conditioning", labels)
    return one_hot(labels, network.classes).to(dtype)


def decode(network: Architecture, layers: Layers, latent: Tensor, condition: Tensor) -> Tensor:
    """[B, r] residuals from latent vectors [B, z] and conditions [B, k]."""
    hidden = torch.cat([latent, condition], dim=1)
    for layer in range(len(network.decoder)):
        hidden = layers.modulate(layer, activate(network.activation, layers.decoder(layer, hidden)))
    return layers.decoder(len(network.decoder), hidden)


def class_prior(
    network: Architecture, layers: Layers, labels: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """(mean, log std) [B, z] of the prior of each record's class under its code; zeros of the kind
    of ``like`` [B, z] where the prior is N(0, I).
    """
    if network.prior == "standard":
        return torch.zeros_like(like), torch.zeros_like(like)
    mean, raw = layers.table("prior", labels).chunk(2, dim=1)
    return mean + layers.prior_shift(labels), soft_bound(raw)


def _classification(network: Architecture, layers: Layers, records: Records) -> Tensor:
    """[B] cross-entropy of the auxiliary classifier: blocks of its own, shared with nothing."""
    if records.features is None or network.classifier is None:
        raise ValueError("features: the auxiliary classifier needs them")
    seen = records.features
    for layer in range(len(network.classifier)):
        seen = activate(network.activation, layers.dense(f"classifier.{layer}", seen))
    logits = layers.dense(f"classifier.{len(network.classifier)}", seen)
    return functional.cross_entropy(
        logits.float() if logits.dtype == torch.bfloat16 else logits,
        records.labels,
        reduction="none",
    )
