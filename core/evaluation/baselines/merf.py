"""DP-MERF (Harder et al. 2021) on the same features. Simulation only.

Each site releases ONCE, per class, its noised count and the noised sum of random Fourier features
of its directions; a generator network is then fitted to the released mean embeddings, which is
post-processing and free.

Privacy: per site one Gaussian event, add or remove one unit. One record's vector
e_y (x) [w ; psi(x)] has norm S = sqrt(w^2 + 1) exactly, because cos and sin come in pairs; a
unit's sum is clipped to S. Sensitivity S. Frequencies are public.
"""

from __future__ import annotations

import math
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
    clipped_class_sums,
    gaussian,
    known,
    noise_std,
    on_sphere,
    released_sum,
)
from core.federation.plan import EmbeddingSpace
from core.privacy.noise import NoiseSource

if TYPE_CHECKING:
    import torch

COUNT_WEIGHT = 0.3
BOUND = math.hypot(COUNT_WEIGHT, 1.0)


@dataclass(frozen=True)
class MerfSettings:
    """Public sizes. ``bandwidths`` are in units of directions, shared out over ``pairs``."""

    pairs: int = 500
    bandwidths: tuple[float, ...] = (0.5, 1.0, 2.0)
    latent: int = 16
    hidden: int = 128
    steps: int = 400
    batch: int = 512
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Merf:
    """The fitted network's weights, and class ``probs`` [C]."""

    weights: tuple[NDArray[np.float64], ...]
    probs: NDArray[np.float64]
    latent: int
    events: EventsBySite
    private: bool = True

    def sample(self, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``n`` rows x [n, d] on the sphere of radius sqrt(d) and labels [n]."""
        draw = np.random.default_rng(seed)
        y = draw.choice(len(self.probs), size=n, p=self.probs).astype(np.int64)
        z = draw.normal(size=(n, self.latent))
        w1, b1, w2, b2, base = self.weights
        inputs = np.concatenate([z, np.eye(len(self.probs))[y]], axis=1)
        x = base[y] + np.maximum(inputs @ w1.T + b1, 0.0) @ w2.T + b2
        return on_sphere(x), y


def frequencies(dim: int, settings: MerfSettings) -> NDArray[np.float64]:
    """[pairs, d] public Gaussian frequencies, the bandwidths in turn."""
    generator = np.random.Generator(np.random.Philox(key=settings.seed, counter=[0, 0, 0, 1]))
    widths = np.resize(np.array(settings.bandwidths), settings.pairs)
    return np.asarray(generator.normal(size=(settings.pairs, dim)) / widths[:, None])


def fourier(x: NDArray[np.float64], omega: NDArray[np.float64]) -> NDArray[np.float64]:
    """psi(x) [n, 2 pairs] with norm 1."""
    angles = x @ omega.T
    return np.asarray(
        np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / math.sqrt(len(omega))
    )


def clipped_embedding(
    site: EmbeddingDataset, classes: int, omega: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[C * (1 + 2 pairs)] weighted counts and feature sums. NOT noised. Sensitivity ``BOUND``."""

    def features(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        counts = np.full((len(rows), 1), COUNT_WEIGHT)
        return np.concatenate([counts, fourier(site.directions[rows], omega)], axis=1)

    width = 1 + 2 * len(omega)
    return clipped_class_sums(site, features, classes=classes, width=width, bound=BOUND).ravel()


def merf(
    sites: Sequence[EmbeddingDataset],
    space: EmbeddingSpace,
    terms: Terms,
    noise: NoiseSource,
    settings: MerfSettings | None = None,
) -> Merf:
    """Release the mean embeddings of ``sites`` at ``terms``, fit a generator to them."""
    chosen = settings or MerfSettings()
    classes = len(space.classes)
    omega = frequencies(space.dim, chosen)
    z, events = calibrated(terms, lambda s: [gaussian(s, terms.unit)])
    total = released_sum(
        [clipped_embedding(known(site, classes), classes, omega) for site in sites],
        z=z, bound=BOUND, mode=terms.noise_mode, noise=noise,
    ).reshape(classes, -1)  # fmt: skip
    std = noise_std(z, BOUND, len(sites), terms.noise_mode)
    floor = max(1.0, TRUSTED_SDS * std / COUNT_WEIGHT)
    counts = np.maximum(total[:, 0] / COUNT_WEIGHT, floor)
    targets = total[:, 1:] / counts[:, None]
    probs = counts / counts.sum()
    weights = _fitted(targets, probs, omega, chosen)
    return Merf(weights, probs, chosen.latent, (events,) * len(sites))


def _fitted(
    targets: NDArray[np.float64],
    probs: NDArray[np.float64],
    omega: NDArray[np.float64],
    settings: MerfSettings,
) -> tuple[NDArray[np.float64], ...]:
    """Least squares between the network's and the released embeddings p_c mu_c. Released only."""
    import torch

    classes, dim = len(targets), omega.shape[1]
    public = torch.Generator().manual_seed(settings.seed)

    def start(*shape: int, scale: float) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=public)).requires_grad_()

    inputs = settings.latent + classes
    parameters = [
        start(settings.hidden, inputs, scale=inputs**-0.5),
        start(settings.hidden, scale=0.0),
        start(dim, settings.hidden, scale=(settings.hidden * dim) ** -0.5),
        start(dim, scale=0.0),
        start(classes, dim, scale=0.1 * dim**-0.5),
    ]
    frequency = torch.as_tensor(omega, dtype=torch.float32)
    weight = torch.as_tensor(probs, dtype=torch.float32)
    wanted = weight[:, None] * torch.as_tensor(targets, dtype=torch.float32)
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate)
    # Classes in equal numbers: a rare class is estimated as well as a frequent one.
    labels = torch.arange(settings.batch) % classes
    one_hot = torch.eye(classes)[labels]
    sizes = one_hot.sum(dim=0).clamp(min=1.0)
    for _ in range(settings.steps):
        latent = torch.randn(settings.batch, settings.latent, generator=public)
        made = _generate(parameters, latent, one_hot)
        angles = made @ frequency.T
        features = torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(len(omega))
        means = (one_hot.T @ features) / sizes[:, None]
        loss = ((weight[:, None] * means - wanted) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return tuple(p.detach().double().numpy() for p in parameters)


def _generate(
    parameters: list[torch.Tensor], latent: torch.Tensor, one_hot: torch.Tensor
) -> torch.Tensor:
    """Directions [n, d] of the network; ``Merf.sample`` is its twin in numpy."""
    import torch

    w1, b1, w2, b2, base = parameters
    hidden = torch.relu(torch.cat([latent, one_hot], dim=1) @ w1.T + b1)
    return torch.nn.functional.normalize(one_hot @ base + hidden @ w2.T + b2, dim=1)
