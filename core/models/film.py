"""The generator of form ``film`` in numpy: initial weights, and the decoder that samplers run.

v -> trunk u = tanh(W v + b) -> (scale, shift) of the decoder's hidden units, shift of each
class's prior mean. The decoder's hidden layer and output are shared. Its output layer starts at
zero, so an untrained generator IS the class-mean generator of the frame. The torch twin is
``core.models.hypernetwork``; a test holds the two equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.layout import train_layout
from core.models.public import Purpose, stream

Vector = NDArray[np.float64]

# Log standard deviations live in (-bound, bound): no exp() can overflow, whatever the noise did.
LOG_STD_BOUND = 3.0
# The part of phi that only training needs.
ENCODER = "encoder"


def soft_bound(raw: NDArray[np.floating]) -> Vector:
    """bound * tanh(raw / bound): identity near 0, never beyond the bound."""
    return np.asarray(LOG_STD_BOUND * np.tanh(raw / LOG_STD_BOUND))


def initial_weights(spec: RunSpec) -> Vector:
    """phi [P] before training, from the plan's public seed.

    Zero: every output that must not disturb the frame (decoder output, film, prior shifts).
    Random: the layers below them, with variance 1 / fan-in.
    """
    generator = stream(spec, Purpose.INITIAL_WEIGHTS)
    layout = train_layout(spec)
    random = {
        "trunk.weight",
        "decoder_hidden.weight",
        "encoder_hidden.weight",
        "encoder_out.weight",
    }
    parts = {}
    for name, shape in layout.blocks:
        parts[name] = np.zeros(shape)
        if name in random:
            parts[name] = generator.normal(0.0, 1.0 / math.sqrt(shape[1]), shape)
    latent = spec.plan.model.latent_dim
    parts["encoder_out.weight"][latent:] = 0.0  # posterior log std starts at 0, as the prior's
    return layout.join(parts)


@dataclass(frozen=True, eq=False)
class Generated:
    """What the hypernetwork generates for one code: theta (film) and omega (prior).

    ``scale`` and ``shift`` [h] of the hidden units; ``prior_mean``, ``prior_log_std`` [C, z].
    """

    scale: Vector
    shift: Vector
    prior_mean: Vector
    prior_log_std: Vector


def generate(weights: Mapping[str, NDArray[np.floating]], code: Vector, classes: int) -> Generated:
    """Run the hypernetwork on one code [c]."""
    trunk = np.tanh(weights["trunk.weight"] @ code + weights["trunk.bias"])
    film = weights["film.weight"] @ trunk + weights["film.bias"]
    hidden = len(film) // 2
    prior = weights["prior.weight"].T  # [C, 2z]
    latent = prior.shape[1] // 2
    shift = (weights["prior_shift.weight"] @ trunk).reshape(classes, latent)
    return Generated(
        scale=1.0 + film[:hidden],
        shift=film[hidden:],
        prior_mean=prior[:, :latent] + shift,
        prior_log_std=soft_bound(prior[:, latent:]),
    )


def decode(
    weights: Mapping[str, NDArray[np.floating]],
    theta: Generated,
    latent: Vector,
    labels: NDArray[np.int64],
) -> Vector:
    """Residuals [n, r] in the frame's basis, in units of the residual scale, from z [n, z]."""
    width = latent.shape[1]
    weight = weights["decoder_hidden.weight"]
    pre = latent @ weight[:, :width].T + weight[:, width:].T[labels]
    hidden = np.tanh(pre + weights["decoder_hidden.bias"])
    modulated = hidden * theta.scale + theta.shift
    return np.asarray(modulated @ weights["decoder_out.weight"].T + weights["decoder_out.bias"])
