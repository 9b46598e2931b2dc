"""The hypernetwork CVAE as a torch module over codes expanded to the batch: the reference path.

Record i goes through the hypernetwork with ITS code (v_m, or 0 under code dropout), so hooks that
compute per-sample gradients see one example a record and not one example a batch (trap 2 of
docs/privacy.md). Everything trainable is a linear layer: class tables act on one-hot labels, a
trainable code on a coin that is 0 under the neutral code.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.models.architecture import Architecture
from core.models.losses import Records, activate, one_hot, record_losses


class HyperCVAE(nn.Module):
    """phi as a module; parameter names, order and shapes are those of ``network.blocks``."""

    def __init__(self, network: Architecture) -> None:
        super().__init__()
        self.network = network
        width = network.trunk[-1]
        self.trunk = _stack(network.trunk_shapes)
        heads: dict[str, nn.Module] = {
            name: nn.Linear(width, size) for name, size in network.generated.items()
        }
        if network.prior == "class":
            heads["prior"] = nn.Linear(width, network.classes * network.latent_dim, bias=False)
        self.heads = nn.ModuleDict(heads)
        if network.prior == "class":
            self.prior = nn.Linear(network.classes, 2 * network.latent_dim, bias=False)
        if network.conditioning == "embedding":
            self.conditioning = nn.Linear(network.classes, network.conditioning_dim, bias=False)
        if network.form != "full":
            self.decoder = _stack(network.decoder_shapes)
        self.encoder = _stack(network.encoder_shapes)
        if network.classifier is not None:
            self.classifier = _stack(network.classifier_shapes)
        if network.trains_code:
            self.code = nn.Linear(1, network.code_dim, bias=False)
        actual = tuple((name, tuple(p.shape)) for name, p in self.named_parameters())
        if actual != network.blocks:
            raise AssertionError("the module and the architecture's blocks disagree")

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy named blocks into the parameters."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(weights[name])

    def forward(
        self,
        residual: Tensor,
        labels: Tensor,
        draws: Tensor,
        codes: Tensor,
        features: Tensor | None = None,
    ) -> Tensor:
        """Loss of each record [B]; arguments as in ``Records``.

        ``codes`` [B, c], or with ``trains_code`` [B, 1]: 1 for the client's code, 0 for neutral.
        """
        values = self.code(codes) if self.network.trains_code else codes
        for layer in self.trunk:
            values = activate(self.network.activation, layer(values))
        layers = _Expanded(self, values)
        return record_losses(self.network, layers, Records(residual, labels, draws, features))


def _stack(shapes: list[tuple[int, int]]) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(into, out) for out, into in shapes])


class _Expanded:
    """``Layers`` of a module under one trunk output [B, t] a record."""

    def __init__(self, module: HyperCVAE, trunk: Tensor) -> None:
        self._module, self._trunk = module, trunk
        self._network = module.network

    def _one_hot(self, labels: Tensor) -> Tensor:
        return one_hot(labels, self._network.classes).to(self._trunk.dtype)

    def _generated(self, name: str) -> Tensor:
        values: Tensor = self._module.heads[name](self._trunk)
        return values

    def dense(self, name: str, inputs: Tensor) -> Tensor:
        values: Tensor = self._module.get_submodule(name)(inputs)
        return values

    def table(self, name: str, labels: Tensor) -> Tensor:
        return self.dense(name, self._one_hot(labels))

    def decoder(self, layer: int, inputs: Tensor) -> Tensor:
        out, into = self._network.decoder_shapes[layer]
        if self._network.form == "full":
            weight = self._generated(f"weight_{layer}").view(-1, out, into)
            bias = self._generated(f"bias_{layer}")
            return torch.einsum("boi,bi->bo", weight, inputs) + bias
        shared = self.dense(f"decoder.{layer}", inputs)
        if self._network.form == "film":
            return shared
        left = self._generated(f"left_{layer}").view(-1, out, self._network.rank)
        right = self._generated(f"right_{layer}").view(-1, into + 1, self._network.rank)
        inner = torch.einsum("bir,bi->br", right[:, :into], inputs) + right[:, into]
        return shared + torch.einsum("bor,br->bo", left, inner)

    def modulate(self, layer: int, hidden: Tensor) -> Tensor:
        if self._network.form != "film":
            return hidden
        scale, shift = self._generated(f"film_{layer}").chunk(2, dim=1)
        return hidden * (1.0 + scale) + shift

    def prior_shift(self, labels: Tensor) -> Tensor:
        shifts = self._generated("prior").view(-1, self._network.classes, self._network.latent_dim)
        return (shifts * self._one_hot(labels)[:, :, None]).sum(1)
