"""DP-CVAE with one global decoder, trained by federated DP-SGD alone. Simulation only.

A plain conditional VAE (no hypernetwork, no codes, no sketch): encoder q(z | x, y), decoder
x | z, y, prior N(0, I). Each round every site Poisson-samples its units, sums a unit's gradients
over its records, clips the sum to C, adds noise; the server divides by a public denominator and
takes an Adam step. All weights are trained jointly under the one clip and leave with noise.

Privacy: per site one Gaussian event for its class counts (sensitivity 1: a unit's counts are
clipped to length 1) and T adaptive Poisson-subsampled ones (sensitivity C), add or remove one
unit. Inclusion and latent draws are keyed by unit under a secret, so they move for nobody else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.baselines.common import (
    TRUSTED_SDS,
    EventsBySite,
    Terms,
    calibrated,
    class_counts,
    gaussian,
    known,
    noise_std,
    on_sphere,
    outer_norms,
    released_sum,
    unit_chunks,
)
from core.federation.plan import EmbeddingSpace
from core.privacy.clipping import clip_factors
from core.privacy.coins import CoinStream
from core.privacy.events import PrivacyEvent, release
from core.privacy.noise import NoiseSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CvaeSettings:
    """Public. The count of units gets noise ``count_ratio`` times that of a gradient's."""

    rounds: int = 100
    sample_rate: float = 0.1
    clip_norm: float = 1.0
    learning_rate: float = 0.01
    latent: int = 8
    hidden: int = 64
    beta: float = 1.0
    count_ratio: float = 10.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Cvae:
    """Decoder layers ``weights`` (w1, b1, w2, b2) on [z ; e_y], class ``probs`` [C]."""

    weights: tuple[NDArray[np.float64], ...]
    probs: NDArray[np.float64]
    latent: int
    events: EventsBySite
    private: bool = True

    def sample(self, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``n`` rows x [n, d] on the sphere of radius sqrt(d) and labels [n].

        x = decoder(z, y) + e with e ~ N(0, I), the likelihood that the loss assumes.
        """
        draw = np.random.default_rng(seed)
        y = draw.choice(len(self.probs), size=n, p=self.probs).astype(np.int64)
        w1, b1, w2, b2 = self.weights
        inputs = np.concatenate(
            [draw.normal(size=(n, self.latent)), np.eye(len(self.probs))[y]], axis=1
        )
        mean = np.maximum(inputs @ w1.T + b1, 0.0) @ w2.T + b2
        return on_sphere(mean + draw.normal(size=mean.shape)), y


def network(dim: int, classes: int, settings: CvaeSettings) -> torch.nn.ModuleList:
    """Four linear layers in float64: two of the encoder, two of the decoder. Public weights."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return nn.ModuleList(
            [
                nn.Linear(dim + classes, settings.hidden),
                nn.Linear(settings.hidden, 2 * settings.latent),
                nn.Linear(settings.latent + classes, settings.hidden),
                nn.Linear(settings.hidden, dim),
            ]
        ).double()


def losses(
    layers: torch.nn.ModuleList,
    x: torch.Tensor,
    one_hot: torch.Tensor,
    draws: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """(loss of each record [B], inputs and output of each layer).

    From x [B, d], one-hot [B, C] and draws [B, z]. Reconstruction + beta * KL; nothing in it
    depends on another record or on B.
    """
    import torch

    tape: list[tuple[torch.Tensor, torch.Tensor]] = []

    def through(index: int, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = layers[index](inputs)
        tape.append((inputs, output))
        return output

    encoded = through(1, torch.relu(through(0, torch.cat([x, one_hot], dim=1))))
    mean, log_std = encoded.chunk(2, dim=1)
    log_std = 3.0 * torch.tanh(log_std / 3.0)  # exp() of a noised weight stays finite
    z = mean + log_std.exp() * draws
    made = through(3, torch.relu(through(2, torch.cat([z, one_hot], dim=1))))
    divergence = 0.5 * (mean**2 + (2 * log_std).exp() - 1.0) - log_std
    return 0.5 * ((x - made) ** 2).sum(dim=1) + beta * divergence.sum(dim=1), tape


def clipped_gradient(
    site: EmbeddingDataset,
    layers: torch.nn.ModuleList,
    classes: int,
    settings: CvaeSettings,
    coins: CoinStream,
) -> NDArray[np.float64]:
    """[P] sum over Poisson-sampled units of their clipped gradients. NOT noised.

    Sensitivity: ``clip_norm``. A record's gradient of a linear layer is an outer product
    delta (x) [a ; 1], so exact norms need no [B, P] array (``common.outer_norms``).
    """
    import torch

    total: list[NDArray[np.float64]] = [
        np.zeros((layer.out_features, layer.in_features + 1)) for layer in _linear(layers)
    ]
    included = coins.bernoulli("inclusion", site.unit_ids, settings.sample_rate)
    root = math.sqrt(site.x.shape[1])
    for rows in unit_chunks(site, np.flatnonzero(included)):
        keys = [site.record_keys[row] for row in rows]
        x = torch.from_numpy(root * site.directions[rows])
        one_hot = torch.from_numpy(np.eye(classes)[site.y[rows]])
        draws = torch.from_numpy(coins.normal("latent", keys, settings.latent))
        each, tape = losses(layers, x, one_hot, draws, settings.beta)
        deltas = torch.autograd.grad(each.sum(), [output for _, output in tape])
        owners = np.unique(site.unit_of[rows], return_inverse=True)[1]
        parts = []
        for (inputs, _), delta in zip(tape, deltas, strict=True):
            a = inputs.detach().numpy()
            parts.append((delta.numpy(), np.concatenate([a, np.ones((len(a), 1))], axis=1)))
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.stack([outer_norms(delta, a, owners) for delta, a in parts])
            factors = clip_factors(np.asarray(np.linalg.norm(norms, axis=0)), settings.clip_norm)
        weights = factors[owners, None]
        for block, (slope, a) in zip(total, parts, strict=True):
            # A gradient that is not finite has weight 0, but 0 times infinity is not 0.
            finite = np.where(weights > 0, slope, 0.0)
            block += (weights * finite).T @ np.where(weights > 0, a, 0.0)
    return np.concatenate([p for block in total for p in (block[:, :-1].ravel(), block[:, -1])])


def _linear(layers: torch.nn.ModuleList) -> list[torch.nn.Linear]:
    return [cast("torch.nn.Linear", layer) for layer in layers]


def cvae(
    sites: Sequence[EmbeddingDataset],
    space: EmbeddingSpace,
    terms: Terms,
    noise: NoiseSource,
    settings: CvaeSettings | None = None,
) -> Cvae:
    """Train over ``sites`` at ``terms``. Sampling afterwards is free."""
    import torch

    chosen = settings or CvaeSettings()
    classes = len(space.classes)
    own = [known(site, classes) for site in sites]
    rate = chosen.sample_rate

    def events_of(z: float) -> list[PrivacyEvent]:
        step = release(noise_multiplier=z, sample_rate=rate, unit=terms.unit)
        return [
            gaussian(z * chosen.count_ratio, terms.unit),
            step.model_copy(update={"steps": chosen.rounds}),
        ]

    z, events = calibrated(terms, events_of)
    count_z = events[0].noise_multiplier
    released = released_sum(
        [class_counts(site, classes) for site in own],
        z=count_z, bound=1.0, mode=terms.noise_mode, noise=noise,
    )  # fmt: skip
    sd = noise_std(count_z, 1.0, len(sites), terms.noise_mode)
    counts = np.maximum(released, max(1.0, TRUSTED_SDS * sd))
    units = max(float(released.sum()), TRUSTED_SDS * sd * math.sqrt(classes), 1.0)
    denominator = rate * units

    layers = network(space.dim, classes, chosen)
    optimiser = torch.optim.Adam(layers.parameters(), lr=chosen.learning_rate)
    secret = terms.secret if terms.secret is not None else os.urandom(32)
    for step in range(chosen.rounds):
        sums = [
            clipped_gradient(
                site, layers, classes, chosen, CoinStream(secret + b"%d" % m, "cvae", step, 1)
            )
            for m, site in enumerate(own)
        ]
        total = released_sum(
            sums, z=z, bound=chosen.clip_norm, mode=terms.noise_mode, noise=noise
        )  # fmt: skip
        _descend(optimiser, layers, total / denominator)
    decoder = [p.detach().double().numpy() for p in list(layers.parameters())[4:]]
    return Cvae(tuple(decoder), counts / counts.sum(), chosen.latent, (events,) * len(sites))


def _descend(
    optimiser: torch.optim.Optimizer, module: torch.nn.Module, gradient: NDArray[np.float64]
) -> None:
    """One step along a released gradient [P]."""
    import torch

    start = 0
    for parameter in module.parameters():
        stop = start + parameter.numel()
        part = torch.as_tensor(gradient[start:stop], dtype=parameter.dtype)
        parameter.grad = part.reshape(parameter.shape)
        start = stop
    optimiser.step()
