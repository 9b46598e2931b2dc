"""The generator in numpy: initial weights, and the decoder that samplers run, in every form.

v -> trunk u -> heads: what is particular to a code (see ``core.models.architecture``). The
decoder's output layer starts at zero under every code, so an untrained generator IS the class-mean
generator of the frame. The torch twins are ``core.models.hypernetwork`` and
``core.models.grouped``; tests hold them equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.architecture import Activation, Architecture, architecture_of
from core.models.layout import train_layout
from core.models.public import Purpose, stream

Vector = NDArray[np.float64]
Weights = Mapping[str, NDArray[np.floating]]

# Log standard deviations live in (-bound, bound): no exp() can overflow, whatever the noise did.
LOG_STD_BOUND = 3.0


def soft_bound(raw: NDArray[np.floating]) -> Vector:
    """bound * tanh(raw / bound): identity near 0, never beyond the bound."""
    return np.asarray(LOG_STD_BOUND * np.tanh(raw / LOG_STD_BOUND))


def activate(kind: Activation, values: Vector) -> Vector:
    """The activation; gelu is its tanh form (Hendrycks and Gimpel 2016)."""
    match kind:
        case "tanh":
            return np.tanh(values)
        case "relu":
            return np.maximum(values, 0.0)
        case "gelu":
            inner = math.sqrt(2.0 / math.pi) * (values + 0.044715 * values**3)
            return np.asarray(0.5 * values * (1.0 + np.tanh(inner)))
        case "silu":
            # The logistic function through tanh: no exp() to overflow.
            return np.asarray(0.5 * values * (1.0 + np.tanh(0.5 * values)))


def initial_weights(spec: RunSpec) -> Vector:
    """phi [P] before training, from the plan's public seed.

    Zero: every output that must not disturb the frame (decoder output, what heads generate, prior
    shifts) and all biases. Random: the layers below them, with variance 1 / fan-in; where weights
    are generated (full) or a factor is (lowrank), the head's bias is the random one.
    """
    generator = stream(spec, Purpose.INITIAL_WEIGHTS)
    network, layout = architecture_of(spec), train_layout(spec)
    fan_in = _random_blocks(network)
    parts = {}
    for name, shape in layout.blocks:
        parts[name] = np.zeros(shape)
        if name in fan_in:
            parts[name] = generator.normal(0.0, 1.0 / math.sqrt(fan_in[name]), shape)
    last = f"encoder.{len(network.encoder)}.weight"
    parts[last][network.latent_dim :] = 0.0  # posterior log std starts at 0, as the prior's
    return layout.join(parts)


def _random_blocks(network: Architecture) -> dict[str, int]:
    """Fan-in of every block that starts at random."""
    random: dict[str, int] = {}
    for name, shapes in (("trunk", network.trunk_shapes), ("encoder", network.encoder_shapes)):
        random |= {f"{name}.{i}.weight": into for i, (_, into) in enumerate(shapes)}
    if network.conditioning == "embedding":
        random["conditioning.weight"] = 1
    for layer, (_, into) in enumerate(network.decoder_shapes):
        if network.form == "lowrank":
            random[f"heads.right_{layer}.bias"] = into + 1
        if layer < len(network.decoder):
            full = network.form == "full"
            name = f"heads.weight_{layer}.bias" if full else f"decoder.{layer}.weight"
            random[name] = into
    return random


@dataclass(frozen=True, eq=False)
class Generated:
    """What the hypernetwork makes of one code: theta (decoder) and omega (prior).

    ``layers``: (weight [out, in], bias [out]) of the decoder under the code; ``film``: (scale,
    shift) [h] of each hidden layer, empty for other forms; ``prior_mean``, ``prior_log_std``
    [C, z]; ``conditions`` [C, k] what the decoder is told of each class.
    """

    activation: Activation
    layers: tuple[tuple[Vector, Vector], ...]
    film: tuple[tuple[Vector, Vector], ...]
    prior_mean: Vector
    prior_log_std: Vector
    conditions: Vector


def generate(network: Architecture, weights: Weights, code: Vector) -> Generated:
    """Run the hypernetwork on one code [c]."""
    trunk = code
    for layer in range(len(network.trunk)):
        trunk = weights[f"trunk.{layer}.weight"] @ trunk + weights[f"trunk.{layer}.bias"]
        trunk = activate(network.activation, trunk)
    made = {
        name: weights[f"heads.{name}.weight"] @ trunk + weights[f"heads.{name}.bias"]
        for name in network.generated
    }
    film: tuple[tuple[Vector, Vector], ...] = ()
    if network.form == "film":
        halves = [np.split(made[f"film_{layer}"], 2) for layer in range(len(network.decoder))]
        film = tuple((1.0 + scale, shift) for scale, shift in halves)
    mean, log_std = np.zeros((2, network.classes, network.latent_dim))
    if network.prior == "class":
        own, raw = np.split(np.asarray(weights["prior.weight"].T, np.float64), 2, axis=1)
        shift = weights["heads.prior.weight"] @ trunk
        mean, log_std = own + shift.reshape(own.shape), soft_bound(raw)
    conditions = np.eye(network.classes)
    if network.conditioning == "embedding":
        conditions = np.asarray(weights["conditioning.weight"].T, np.float64)
    return Generated(
        activation=network.activation,
        layers=tuple(
            _layer(network, weights, made, index) for index in range(len(network.decoder) + 1)
        ),
        film=film,
        prior_mean=mean,
        prior_log_std=log_std,
        conditions=conditions,
    )


def _layer(
    network: Architecture, weights: Weights, made: Mapping[str, Vector], index: int
) -> tuple[Vector, Vector]:
    """(weight, bias) of one decoder layer under the code that ``made`` belongs to."""
    out, into = network.decoder_shapes[index]
    if network.form == "full":
        return made[f"weight_{index}"].reshape(out, into), made[f"bias_{index}"]
    weight = np.asarray(weights[f"decoder.{index}.weight"], np.float64)
    bias = np.asarray(weights[f"decoder.{index}.bias"], np.float64)
    if network.form == "film":
        return weight, bias
    left = made[f"left_{index}"].reshape(out, network.rank)
    delta = left @ made[f"right_{index}"].reshape(into + 1, network.rank).T
    return weight + delta[:, :into], bias + delta[:, into]


def decode(theta: Generated, latent: Vector, labels: NDArray[np.int64]) -> Vector:
    """Residuals [n, r] in the frame's basis, in units of the residual scale, from z [n, z]."""
    width = latent.shape[1]
    weight, bias = theta.layers[0]
    # The class's part of the first layer, once for each class.
    by_class = theta.conditions @ weight[:, width:].T + bias
    values = latent @ weight[:, :width].T + by_class[labels]
    for index, (weight, bias) in enumerate(theta.layers[1:]):
        values = activate(theta.activation, values)
        if theta.film:
            scale, shift = theta.film[index]
            values = values * scale + shift
        values = values @ weight.T + bias
    return values
