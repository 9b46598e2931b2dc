"""The server's optimiser: from a round's denoised gradient to the next weights.

Two kinds of blocks, two rules, both public. The generator's blocks follow the plan's optimiser
(Adam or heavy-ball momentum; sampling uses a moving average). The auxiliary classifier follows
momentum at a step size that the known noise sets: over all T rounds, noise alone would move its
average by ``optimiser.classifier_noise`` times the length of the classifier that the sketch gave.
So there is nothing to tune to epsilon, to the number of records or to the classes' separation:
where noise is large, steps are small. The average of the later half of its iterates is published.

Reads released values only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from core.federation.optimiser import server_step
from core.federation.plan import RunSpec
from core.models.architecture import group_of
from core.models.classifier import BIAS, WEIGHT, discriminant
from core.models.frame import Frame
from core.models.generator import initial_weights
from core.models.layout import shared_layout, train_layout

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class State:
    """Vectors [P]: the iterate, what samplers use, and the optimiser's first and second moments."""

    phi: Vector
    average: Vector
    first: Vector
    second: Vector


@dataclass(frozen=True, eq=False)
class Gradient:
    """``values`` [P] of the mean loss; ``noise_std`` of each coordinate's noise."""

    values: Vector
    noise_std: float


def starting_state(spec: RunSpec, frame: Frame) -> State:
    """Before the first training round: the public weights, and the frame's classifier."""
    layout = shared_layout(spec)
    phi = initial_weights(spec)[train_layout(spec).places(layout)]
    if spec.plan.model.classifier == "linear":
        parts = layout.split(phi)
        found = discriminant(frame)
        parts[WEIGHT][...], parts[BIAS][...] = found.weight, found.bias
    return State(phi, phi.copy(), np.zeros(phi.size), np.zeros(phi.size))


def advance(spec: RunSpec, frame: Frame, step: int, state: State, gradient: Gradient) -> State:
    """The state after training round ``step`` (from 1). A part that is clipped to 0 stays."""
    privacy = spec.plan.privacy
    of_classifier = _classifier_coordinates(spec)
    after = state
    if privacy.clip_norm > 0.0:
        after = _only(~of_classifier, _generator_step(spec, step, state, gradient), after)
    if privacy.classifier_clip_norm > 0.0 and of_classifier.any():
        moved = _classifier_step(spec, frame, step, state, gradient)
        after = _only(of_classifier, moved, after)
    return after


def _only(where: NDArray[np.bool_], new: State, old: State) -> State:
    return State(
        phi=np.where(where, new.phi, old.phi),
        average=np.where(where, new.average, old.average),
        first=np.where(where, new.first, old.first),
        second=np.where(where, new.second, old.second),
    )


@lru_cache(maxsize=8)
def _classifier_coordinates(spec: RunSpec) -> NDArray[np.bool_]:
    """[P] which coordinates are the classifier's."""
    return np.concatenate(
        [
            np.full(math.prod(shape), group_of(name) == "classifier")
            for name, shape in shared_layout(spec).blocks
        ]
    )


def _generator_step(spec: RunSpec, step: int, state: State, gradient: Gradient) -> State:
    phi, first, second = server_step(
        spec, step, state.phi, gradient.values, state.first, state.second
    )
    decay = average_decay(spec, step)
    return State(phi, decay * state.average + (1.0 - decay) * phi, first, second)


def average_decay(spec: RunSpec, step: int) -> float:
    """Of the moving average after round ``step``: it forgets its start while it is young."""
    return min(spec.plan.optimiser.ema_decay, step / (step + 1.0))


def _classifier_step(
    spec: RunSpec, frame: Frame, step: int, state: State, gradient: Gradient
) -> State:
    momentum, rounds = spec.plan.optimiser.classifier_momentum, spec.plan.privacy.rounds
    start = discriminant(frame)
    size = start.weight.size + start.bias.size
    moved_by_noise = noise_gain(rounds, momentum) * gradient.noise_std * math.sqrt(size)
    rate = spec.plan.optimiser.classifier_noise * start.norm / moved_by_noise
    first = momentum * state.first + gradient.values
    phi = state.phi - rate * first
    averaged = step - (rounds - _averaged(rounds))
    average = phi
    if averaged > 1:
        average = state.average + (phi - state.average) / averaged
    return replace(state, phi=phi, average=average, first=first)


def _averaged(rounds: int) -> int:
    """How many iterates are averaged: the later half."""
    return max(1, rounds - rounds // 2)


@lru_cache(maxsize=64)
def noise_gain(rounds: int, momentum: float) -> float:
    """Standard deviation of the published average at step size 1 and unit noise in each round.

    The noise of round s has moved iterate t by (1 - m^(t - s + 1)) / (1 - m); the average takes
    the mean over its iterates, and rounds are independent.
    """
    iterate = np.arange(1, rounds + 1)
    since = iterate[:, None] - iterate[None, :] + 1
    reach = np.where(since > 0, (1.0 - momentum ** np.maximum(since, 0)) / (1.0 - momentum), 0.0)
    return float(np.linalg.norm(reach[-_averaged(rounds) :].mean(axis=0)))
