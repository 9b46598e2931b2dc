"""The trunk's part of every record's gradient: K numbers for K codes instead of a network a record.

All records of a client share v and hence J, the Jacobian of u = trunk(v) in the trunk's parameters
and in v. With c_i = d loss_i / d u [t], record i's gradient there is J^T c_i, and

    |J^T c_i|^2 = c_i^T (J J^T) c_i
    J J^T = sum over layers l of (|h_(l-1)|^2 + 1) M_l M_l^T, + M_0 M_0^T for a trained code

where h_(l-1) is the layer's input, M_l = d u / d (its output before the activation) and M_0 =
d u / d v. J itself is never needed. Float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from core.models.architecture import Activation, Architecture
from core.models.grouped import Weights
from core.models.losses import activate


class Trunk:
    """Outputs, Jacobians and their roots for codes [K, c].

    ``client_code``: which of the codes is the client's own, trained one (None: none is trained).
    ``outputs`` [K, t]; ``squares`` [K] |u|^2; ``roots``: for each code, group -> R with
    |c R| = the norm of the gradient of that group's blocks for a c [t].
    """

    def __init__(
        self, network: Architecture, weights: Weights, codes: Tensor, client_code: int | None
    ) -> None:
        self._network, self._client_code = network, client_code
        self._weights = {
            name: value.detach().double() for name, value in weights.items() if "trunk." in name
        }
        self._values, self._moves = self._derivatives(codes.detach().double())
        self.outputs = self._values[-1]
        self.squares = self.outputs.square().sum(1)
        self.roots = [self._roots(index) for index in range(len(codes))]

    def _derivatives(self, codes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """([v, h_1, ..., u] each [K, w], [M_0, M_1, ..., M_L] each [K, t, w])."""
        values, slopes = [codes], []
        for layer in range(len(self._network.trunk)):
            weight, bias = (
                self._weights[f"trunk.{layer}.weight"],
                self._weights[f"trunk.{layer}.bias"],
            )
            value, slope = with_slope(self._network.activation, values[-1] @ weight.T + bias)
            values.append(value)
            slopes.append(slope)
        moves = [torch.diag_embed(slopes[-1])]
        for layer in range(len(slopes) - 1, 0, -1):
            before = moves[0] @ self._weights[f"trunk.{layer}.weight"]
            moves.insert(0, before * slopes[layer - 1][:, None])
        moves.insert(0, moves[0] @ self._weights["trunk.0.weight"])
        return values, moves

    def _roots(self, index: int) -> dict[str, Tensor]:
        scaled = [
            move[index] * (value[index].square().sum() + 1.0).sqrt()
            for value, move in zip(self._values, self._moves[1:], strict=False)
        ]
        roots = {"trunk": _narrow(torch.cat(scaled, dim=1))}
        if self._network.trains_code:
            move = self._moves[0][index]
            trained = index == self._client_code
            roots["code"] = _narrow(move) if trained else torch.zeros_like(move[:, :1])
        return roots

    def gradients(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Blocks of trunk and code from sums of c: group -> [K, t] (``trunk``, ``code``)."""
        blocks: dict[str, Tensor] = {}
        for layer, (value, move) in enumerate(zip(self._values, self._moves[1:], strict=False)):
            delta = torch.einsum("kt,ktw->kw", sums["trunk"], move)
            blocks[f"trunk.{layer}.weight"] = delta.T @ value
            blocks[f"trunk.{layer}.bias"] = delta.sum(0)
        if self._network.trains_code:
            move = self._moves[0]
            if self._client_code is None:
                blocks["code.weight"] = torch.zeros_like(move[0, :1].T)
            else:
                index = self._client_code
                blocks["code.weight"] = (sums["code"][index] @ move[index])[:, None]
        return blocks


def with_slope(kind: Activation, before: Tensor) -> tuple[Tensor, Tensor]:
    """An activation's values and derivatives at ``before``, of any shape."""
    value = activate(kind, before)
    match kind:
        case "tanh":
            return value, 1.0 - value.square()
        case "relu":
            return value, (before > 0.0).to(before.dtype)
        case "silu":
            gate = torch.sigmoid(before)
            return value, gate * (1.0 + before * (1.0 - gate))
        case "gelu":
            root = math.sqrt(2.0 / math.pi)
            inner = torch.tanh(root * (before + 0.044715 * before**3))
            outer = root * (1.0 + 3.0 * 0.044715 * before.square())
            return value, 0.5 * (1.0 + inner) + 0.5 * before * (1.0 - inner.square()) * outer


def _narrow(root: Tensor) -> Tensor:
    """[t, min(t, m)] with the same |c R| for every c, from [t, m]."""
    if root.shape[1] <= root.shape[0]:
        return root
    upper: Tensor = torch.linalg.qr(root.T, mode="r").R
    return upper.T
