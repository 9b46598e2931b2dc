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
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    released_sum,
    unit_chunks,
)
from core.federation.plan import EmbeddingSpace
from core.privacy.coins import CoinStream
from core.privacy.events import PrivacyEvent, release
from core.privacy.mechanism import clip_rows
from core.privacy.noise import NoiseSource

if TYPE_CHECKING:
    import torch
    from opacus.grad_sample import GradSampleModule

_CHUNK_RECORDS = 256  # bounds memory at 256 gradients


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


def network(dim: int, classes: int, settings: CvaeSettings) -> torch.nn.Module:
    """The module: (x [B, d], one-hot [B, C], draws [B, z]) -> loss of each record [B]."""
    import torch
    from torch import nn

    class PlainCvae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Linear(dim + classes, settings.hidden),
                nn.ReLU(),
                nn.Linear(settings.hidden, 2 * settings.latent),
            )
            self.decoder = nn.Sequential(
                nn.Linear(settings.latent + classes, settings.hidden),
                nn.ReLU(),
                nn.Linear(settings.hidden, dim),
            )

        def forward(
            self, x: torch.Tensor, one_hot: torch.Tensor, draws: torch.Tensor
        ) -> torch.Tensor:
            encoded = self.encoder(torch.cat([x, one_hot], dim=1))
            mean, log_std = encoded.chunk(2, dim=1)
            log_std = 3.0 * torch.tanh(log_std / 3.0)  # exp() of a noised weight stays finite
            made = self.decoder(torch.cat([mean + log_std.exp() * draws, one_hot], dim=1))
            divergence = 0.5 * (mean**2 + (2 * log_std).exp() - 1.0) - log_std
            error = 0.5 * ((x - made) ** 2).sum(dim=1)
            loss: torch.Tensor = error + settings.beta * divergence.sum(dim=1)
            return loss

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return PlainCvae()


def clipped_gradient(
    site: EmbeddingDataset,
    module: GradSampleModule[torch.nn.Module],
    classes: int,
    settings: CvaeSettings,
    coins: CoinStream,
) -> NDArray[np.float64]:
    """[P] sum over Poisson-sampled units of their clipped gradients. NOT noised.

    ``module`` wraps ``network``. Sensitivity: ``clip_norm``.
    """
    import torch

    parameters = list(module.parameters())
    total = np.zeros(sum(p.numel() for p in parameters))
    included = coins.bernoulli("inclusion", site.unit_ids, settings.sample_rate)
    root = math.sqrt(site.x.shape[1])
    for rows in unit_chunks(site, np.flatnonzero(included), limit=_CHUNK_RECORDS):
        keys = [site.record_keys[row] for row in rows]
        inputs = [
            torch.as_tensor(part, dtype=torch.float32)
            for part in (
                root * site.directions[rows],
                np.eye(classes)[site.y[rows]],
                coins.normal("latent", keys, settings.latent),
            )
        ]
        module.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            # torch warns that hooks see no gradient for the inputs (records); none is wanted.
            warnings.filterwarnings("ignore", message=".*non-full backward hook.*")
            warnings.filterwarnings("ignore", message=".*Full backward hook is firing.*")
            module(*inputs).sum().backward()
        samples = [np.asarray(p.grad_sample.numpy()).reshape(len(rows), -1) for p in parameters]
        gradients = np.concatenate(samples, axis=1, dtype=np.float64)
        groups = site.unit_of[rows]
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        by_unit = gradients if len(starts) == len(rows) else np.add.reduceat(gradients, starts)
        total += clip_rows(by_unit, settings.clip_norm).sum(axis=0)
    return total


def cvae(
    sites: Sequence[EmbeddingDataset],
    space: EmbeddingSpace,
    terms: Terms,
    noise: NoiseSource,
    settings: CvaeSettings | None = None,
) -> Cvae:
    """Train over ``sites`` at ``terms``. Sampling afterwards is free."""
    import torch
    from opacus.grad_sample import GradSampleModule

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

    # "sum": the hooks must not multiply by a batch size that we never divide by.
    inner = network(space.dim, classes, chosen)
    module = GradSampleModule(inner, batch_first=True, loss_reduction="sum")
    optimiser = torch.optim.Adam(inner.parameters(), lr=chosen.learning_rate)
    secret = terms.secret if terms.secret is not None else os.urandom(32)
    for step in range(chosen.rounds):
        sums = [
            clipped_gradient(
                site, module, classes, chosen, CoinStream(secret + b"%d" % m, "cvae", step, 1)
            )
            for m, site in enumerate(own)
        ]
        total = released_sum(
            sums, z=z, bound=chosen.clip_norm, mode=terms.noise_mode, noise=noise
        )  # fmt: skip
        _descend(optimiser, inner, total / denominator)
    decoder = [p.detach().double().numpy() for p in list(inner.parameters())[4:]]
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
