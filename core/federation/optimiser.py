"""The optimiser over noised sums: post-processing, the same rule for whoever applies it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec

Vector = NDArray[np.float64]
_ADAM_BETAS = (0.9, 0.99)  # few rounds: the usual 0.999 would not warm up
_ADAM_EPSILON = 1e-8


def server_step(
    spec: RunSpec, step: int, phi: Vector, gradient: Vector, first: Vector, second: Vector
) -> tuple[Vector, Vector, Vector]:
    """One step of the server's optimiser (Adam, Kingma and Ba 2015; or heavy-ball momentum).

    All vectors [P] in float64; ``step`` counts from 1. Returns (phi, first, second moments).
    """
    plan = spec.plan.optimiser
    if plan.kind == "momentum":
        first = plan.momentum * first + gradient
        return phi - plan.learning_rate * first, first, second
    beta1, beta2 = _ADAM_BETAS
    first = beta1 * first + (1.0 - beta1) * gradient
    second = beta2 * second + (1.0 - beta2) * gradient**2
    corrected = first / (1.0 - beta1**step)
    scale = np.sqrt(second / (1.0 - beta2**step)) + _ADAM_EPSILON
    return phi - plan.learning_rate * corrected / scale, first, second
