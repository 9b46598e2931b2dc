"""Squared MMD between the current generator and the released class means of random features.

For class y and codes V (the neutral one; then all released ones, in equal shares) let m be the
mean over synthetic rows u = x/|x| of the features psi(u), and t the released target. The gap

    |m - t|^2 - (mean |psi|^2 - |m|^2) / (n - 1)

is an unbiased estimate, for n independent rows, of the squared distance between the generator's
true mean and t. Rows are those of ``core.synthesis.sampler``, with the draws held fixed and phi
free: gradients are those of reparameterised samples. Released codes are centred, so that in equal
shares their class means are the pooled ones, which the targets are of, too.

A second gap, the linear part of the kernel, is that of the rows' coordinates in the frame's basis
(phi moves rows in no other direction) to those of the released class means.

Noise. t = true mean + noise of known squared length N on average, f coordinates of variance
``target_variance``. Pulling the generator onto t would teach it the noise. So the gradient of a
gap g is multiplied with max(0, 1 - N / g), the positive-part James-Stein factor: it is the gradient
to the target shrunk towards the generator, signal / (signal + noise), and vanishes where noise
explains the whole gap. As an objective that is g - N - N log(g / N) above N and 0 below. For the
class means N is that of the first sketch alone: a second step's refinement and the shrinkage have
less, so the linear part errs towards no pull.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.federation.plan import RunSpec
from core.models.architecture import Architecture, architecture_of
from core.models.features import frequencies
from core.models.frame import Frame
from core.models.grouped import Grouped, Span, generate, trunk_outputs
from core.models.losses import class_prior, conditions, decode

Vector = NDArray[np.float64]
Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Draws:
    """What makes rows of a round's MMD: the same for every class.

    ``codes`` [K, c], the neutral one first; ``spans`` which of 2n rows are under which, the first
    n under the neutral one; standard normal ``latent`` [2n, z], ``isotropic`` [2n, d], ``along``
    [2n, k].
    """

    codes: Vector
    spans: list[Span]
    latent: Vector
    isotropic: Vector
    along: Vector

    @classmethod
    def make(cls, spec: RunSpec, frame: Frame, draw: np.random.Generator) -> Draws:
        """Draws for rows n = ``mmd_rows`` twice, from a public stream."""
        rows = spec.plan.regulariser.mmd_rows
        # Every row has a code of its own draw: rows of a mixture are independent.
        chosen, counts = np.unique(draw.integers(0, len(frame.codes), rows), return_counts=True)
        spans = [Span(0, 0, rows)]
        for index, count in enumerate(counts.tolist()):
            spans.append(Span(index + 1, spans[-1].end, spans[-1].end + count))
        neutral = np.zeros((1, frame.codes.shape[1]))
        return cls(
            codes=np.concatenate([neutral, frame.codes[chosen]]),
            spans=spans,
            latent=draw.standard_normal((2 * rows, spec.plan.model.latent_dim)),
            isotropic=draw.standard_normal((2 * rows, spec.space.dim)),
            along=draw.standard_normal((2 * rows, len(frame.factors))),
        )

    def around_means(self, frame: Frame, label: int, scales: list[float]) -> Vector:
        """[2n, d] rows of a class before the decoder's part: nothing in them depends on phi."""
        base = frame.base[label] + self.codes @ frame.directions[:, label]
        rows = np.empty_like(self.isotropic)
        for code, first, end in self.spans:
            factors = frame.factors_under(self.codes[code])
            rows[first:end] = base[code] + scales[code] * self.isotropic[first:end]
            rows[first:end] += self.along[first:end] @ factors
        return rows


def add_mmd_gradient(
    spec: RunSpec, frame: Frame, weights: Weights, draw: np.random.Generator, weight: float
) -> None:
    """Add ``weight`` times the gradient of the term to the weights' ``grad``.

    The term: the sum over classes, times their frequencies, of both gaps beyond their noise, each
    the mean of its values under the neutral code and under all released ones. Class after
    class, so that memory does not grow with their number; through the hypernetwork once, for what
    it generates is the same for all. Raises ``ValueError`` without targets.
    """
    if not frame.targets.size:
        raise ValueError("this frame has no targets: its plan has sketch.feature_weight = 0")
    network, draws = architecture_of(spec), Draws.make(spec, frame, draw)
    codes = torch.from_numpy(draws.codes)
    made = generate(network, weights, trunk_outputs(network, weights, codes)[-1])
    held = {name: value.detach().requires_grad_(True) for name, value in made.items()}
    layers = Grouped(network, weights, held, draws.spans)
    objective = _Objective(spec, frame, network, draws)
    for label in range(network.classes):
        (weight * objective.of_class(layers, label)).backward()  # type: ignore[no-untyped-call]
    moved = [name for name, value in held.items() if value.grad is not None]
    torch.autograd.backward([made[name] for name in moved], [held[name].grad for name in moved])


class _Objective:
    """What all classes' parts of one round's term share; nothing of it depends on phi."""

    def __init__(self, spec: RunSpec, frame: Frame, network: Architecture, draws: Draws) -> None:
        self._frame, self._network, self._draws = frame, network, draws
        self._scales = [frame.scale_under(code) for code in draws.codes]
        self._latent = torch.from_numpy(draws.latent)
        self._colour = torch.from_numpy(frame.colour(np.eye(len(frame.basis))))
        self._basis = torch.from_numpy(np.array(frame.basis))
        self._frequencies = torch.from_numpy(frequencies(spec))
        self._shares = frame.class_probs / frame.class_probs.sum()
        # Features and directions were released with one noise, each over its weight.
        sketch = spec.plan.sketch
        self._mean_variance = frame.target_variance * (
            sketch.feature_weight / sketch.mean_weight
        ) ** 2  # fmt: skip

    def of_class(self, layers: Grouped, label: int) -> Tensor:
        """A class's part of the objective, its share included."""
        frame, rows = self._frame, len(self._latent) // 2
        directions = self._directions(layers, label)
        features = _features(directions, self._frequencies)
        inside = directions @ self._basis.T
        target = torch.from_numpy(np.array(frame.targets[label]))
        mean = torch.from_numpy(frame.basis @ frame.base[label]) / directions.shape[1] ** 0.5
        noise = float(frame.target_variance[label]) * len(target)
        mean_noise = float(self._mean_variance[label]) * len(mean)
        parts = [
            beyond_noise(gap(features[half], target), noise)
            + beyond_noise(gap(inside[half], mean), mean_noise)
            for half in (slice(0, rows), slice(rows, None))
        ]
        return 0.5 * float(self._shares[label]) * (parts[0] + parts[1])

    def _directions(self, layers: Grouped, label: int) -> Tensor:
        """[2n, d] synthetic rows of a class, of length 1: the torch twin of the sampler's."""
        network, latent = self._network, self._latent
        labels = torch.full((len(latent),), label)
        mean, log_std = class_prior(network, layers, labels, latent)
        condition = conditions(network, layers, labels, latent.dtype)
        residual = decode(network, layers, mean + log_std.exp() * latent, condition)
        around = torch.from_numpy(self._draws.around_means(self._frame, label, self._scales))
        directions: Tensor = functional.normalize(around + residual @ self._colour, dim=1)
        return directions


def _features(directions: Tensor, omega: Tensor) -> Tensor:
    """[n, 2 pairs] of unit length, as ``core.models.features.fourier_features``."""
    phases = directions @ omega.T
    scaled: Tensor = torch.cat([phases.cos(), phases.sin()], dim=1) / len(omega) ** 0.5
    return scaled


def gap(features: Tensor, target: Tensor) -> Tensor:
    """Unbiased |E features - target|^2 from n independent rows [n, f], n >= 2; may be below 0."""
    mean = features.mean(0)
    spread = features.square().sum(1).mean() - mean.square().sum()
    return (mean - target).square().sum() - spread / (len(features) - 1)


def beyond_noise(value: Tensor, noise: float) -> Tensor:
    """What a gap says beyond a noise of squared length ``noise``: slope max(0, 1 - noise / gap)."""
    if noise <= 0.0:
        return value
    kept = value.clamp_min(noise)
    return kept - noise - noise * (kept / noise).log()
