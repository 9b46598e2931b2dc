"""The auxiliary classifier: a linear softmax over whole embeddings, from the sketch to the rounds.

It sees f = 10 (x/|x| - m), m the frame's mean direction (public). The factor makes the gradient's
bias part, which has length 1, small beside the rest, as |x/|x| - m| is below 1.

It starts as the linear discriminant of the released frame: with covariance S and class means m_y,
w_y = S^-1 (m_y - m), b_y = log p_y - (m_y - m)^T w_y / 2. That is the best there is for Gaussian
classes, and too sure of itself for real ones: its logits are divided by sqrt(their spread) / 0.5,
halfway, on a logarithmic scale, to no confidence at all. Training then corrects it on real records
(``core.federation.server``), and samplers let it choose labels (``core.synthesis.guidance``).

Everything here is computed from released values: no privacy cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.models.frame import Frame

Vector = NDArray[np.float64]

FEATURE_SCALE = 10.0
WEIGHT, BIAS = "classifier.0.weight", "classifier.0.bias"
_CONFIDENCE = 0.5
_LEAST_SPREAD = 0.25  # of logits: below it there is nothing to be sure of
_LEAST_NORM = 2.0  # so that training has a scale even where the sketch saw nothing


@dataclass(frozen=True, eq=False)
class Linear:
    """``weight`` [C, d] on features, ``bias`` [C]."""

    weight: Vector
    bias: Vector

    @property
    def norm(self) -> float:
        """Length of all its numbers, at least what makes a scale for steps."""
        return max(_LEAST_NORM, math.hypot(np.linalg.norm(self.weight), np.linalg.norm(self.bias)))

    def labels(self, seen: Vector) -> NDArray[np.int64]:
        """[n] the likeliest class of features [n, d]."""
        return np.asarray((seen @ self.weight.T + self.bias).argmax(axis=1), np.int64)


def features(frame: Frame, directions: Vector) -> Vector:
    """f [n, d] of directions x/|x| [n, d], row by row."""
    return np.asarray(FEATURE_SCALE * (directions - frame.centre))


def discriminant(frame: Frame) -> Linear:
    """The tempered linear discriminant under the neutral code."""
    found = _untempered(frame)
    spread = _logit_spread(frame, _contrasts(frame), found)
    temperature = _CONFIDENCE / math.sqrt(max(spread, _LEAST_SPREAD))
    return Linear(temperature * found.weight / FEATURE_SCALE, temperature * found.bias)


def _contrasts(frame: Frame) -> Vector:
    """[C, d] class means of directions, around their centre."""
    return frame.base / math.sqrt(frame.base.shape[1]) - frame.centre


def _untempered(frame: Frame) -> Linear:
    """The discriminant on x/|x| - m: exact for the frame's Gaussian classes before the sphere."""
    dim = frame.base.shape[1]
    means = _contrasts(frame)
    isotropic = frame.scale[0] ** 2 / dim
    factors = frame.factors / math.sqrt(dim)
    weight = means / isotropic
    if len(factors):
        # Woodbury: the covariance is isotropic but for k directions.
        inner = isotropic * np.eye(len(factors)) + factors @ factors.T
        weight = (means - np.linalg.solve(inner, factors @ means.T).T @ factors) / isotropic
    probs = np.maximum(frame.class_probs / frame.class_probs.sum(), 1e-12)
    return Linear(weight, np.log(probs) - 0.5 * np.sum(weight * means, axis=1))


def _logit_spread(frame: Frame, means: Vector, found: Linear) -> float:
    """Root mean square deviation of the discriminant's logits from their means, in the frame."""
    probs = frame.class_probs / frame.class_probs.sum()
    within = np.sum(found.weight * means, axis=1)  # w^T S w, as S w = mean
    at_means = found.weight @ means.T  # [C, C of the record]
    between = ((at_means - (at_means @ probs)[:, None]) ** 2) @ probs
    return float(np.sqrt(np.mean(within + between)))
