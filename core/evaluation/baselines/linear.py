"""DP-SGD linear classifier: no synthesis at all, the ceiling at this epsilon. Simulation only.

Softmax regression on [x/|x| ; b], few rounds of full batches (or large Poisson samples), momentum,
average of the later iterates. A unit's gradient is the SUM over its records, clipped to C; sums
are divided by a noised count that is released first.

Privacy: per site one Gaussian event for its number of units (sensitivity 1) and T adaptive ones
(subsampled if q < 1) for the clipped sums (sensitivity C), add or remove one unit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from core.data import EmbeddingDataset
from core.evaluation.baselines.common import (
    TRUSTED_SDS,
    EventsBySite,
    Terms,
    calibrated,
    gaussian,
    known,
    noise_std,
    outer_norms,
    released_sum,
    unit_chunks,
)
from core.federation.plan import EmbeddingSpace
from core.privacy.clipping import clip_factors
from core.privacy.coins import CoinStream
from core.privacy.events import PrivacyEvent, release
from core.privacy.noise import NoiseSource

# Fixed in advance for a "best of three": which one is best depends on epsilon and on the data.
LEARNING_RATES = (1.0, 4.0, 16.0)


@dataclass(frozen=True)
class LinearSettings:
    """Public. ``count_share`` of the precision 1/z^2 goes to the number of units."""

    rounds: int = 50
    sample_rate: float = 1.0
    clip_norm: float = 1.0
    learning_rate: float = LEARNING_RATES[1]
    momentum: float = 0.9
    bias: float = 0.1
    averaged: float = 0.5  # share of the rounds, the last ones, whose iterates are averaged
    count_share: float = 0.02


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """``weights`` [C, d + 1] on [x/|x| ; bias]."""

    weights: NDArray[np.float64]
    bias: float
    events: EventsBySite
    private: bool = True

    def predict(self, x: NDArray[np.floating]) -> NDArray[np.int64]:
        """Class ids [n] of records [n, d]; the scale of a record does not matter."""
        wide = np.asarray(x, np.float64)
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        rows = _with_bias(wide / np.where(norms > 0, norms, 1.0), self.bias)
        return np.asarray((rows @ self.weights.T).argmax(axis=1), np.int64)


def _with_bias(directions: NDArray[np.float64], bias: float) -> NDArray[np.float64]:
    return np.concatenate([directions, np.full((len(directions), 1), bias)], axis=1)


def unit_count(site: EmbeddingDataset) -> NDArray[np.float64]:
    """[1] number of units with a valid record. NOT noised. Sensitivity 1."""
    return np.array([float(len(np.unique(site.unit_of[site.valid])))])


def clipped_gradient(
    site: EmbeddingDataset,
    weights: NDArray[np.float64],
    settings: LinearSettings,
    coins: CoinStream | None = None,
) -> NDArray[np.float64]:
    """[C * (d + 1)] sum over (sampled) units of their clipped gradients. NOT noised.

    ``coins`` decide inclusion when ``sample_rate`` < 1. Sensitivity: ``clip_norm``. The gradient
    of a record is delta (x) x: exact norms without one array a record (``common.outer_norms``).
    """
    total = np.zeros_like(weights)
    units = None
    if settings.sample_rate < 1.0:
        if coins is None:
            raise ValueError("a sampled round needs coins")
        units = np.flatnonzero(coins.bernoulli("inclusion", site.unit_ids, settings.sample_rate))
    for rows in unit_chunks(site, units):
        x = _with_bias(site.directions[rows], settings.bias)
        delta = softmax(x @ weights.T, axis=1)
        delta[np.arange(len(rows)), site.y[rows]] -= 1.0
        owners = np.unique(site.unit_of[rows], return_inverse=True)[1]
        factors = clip_factors(outer_norms(delta, x, owners), settings.clip_norm)
        total += (factors[owners, None] * delta).T @ x
    return np.asarray(total.ravel())


def linear_classifier(
    sites: Sequence[EmbeddingDataset],
    space: EmbeddingSpace,
    terms: Terms,
    noise: NoiseSource,
    settings: LinearSettings | None = None,
) -> LinearClassifier:
    """Train over ``sites`` at ``terms``; the classifier is the release."""
    chosen = settings or LinearSettings()
    classes = len(space.classes)
    own = [known(site, classes) for site in sites]
    rate, share = chosen.sample_rate, chosen.count_share

    def events_of(z: float) -> list[PrivacyEvent]:
        # Full batches: T releases at z_T have the precision T / z_T^2 of one.
        step_z = z * math.sqrt(chosen.rounds / (1.0 - share)) if rate == 1.0 else z
        step = release(noise_multiplier=step_z, sample_rate=rate, unit=terms.unit)
        count_z = z / math.sqrt(share) if rate == 1.0 else z * _count_ratio(chosen)
        return [
            gaussian(count_z, terms.unit),
            step.model_copy(update={"steps": chosen.rounds}),
        ]

    _, events = calibrated(terms, events_of)
    count_event, step_event = events
    released = released_sum(
        [unit_count(site) for site in own],
        z=count_event.noise_multiplier, bound=1.0, mode=terms.noise_mode, noise=noise,
    )  # fmt: skip
    count_sd = noise_std(count_event.noise_multiplier, 1.0, len(sites), terms.noise_mode)
    denominator = rate * max(float(released[0]), TRUSTED_SDS * count_sd, 1.0)
    secret = terms.secret if terms.secret is not None else os.urandom(32)
    weights = np.zeros((classes, space.dim + 1))
    velocity, average = np.zeros_like(weights), np.zeros_like(weights)
    first = chosen.rounds - max(1, round(chosen.averaged * chosen.rounds))
    for step in range(chosen.rounds):
        sums = [
            clipped_gradient(
                site, weights, chosen, CoinStream(secret + b"%d" % m, "linear", step, 1)
            )
            for m, site in enumerate(own)
        ]
        total = released_sum(
            sums,
            z=step_event.noise_multiplier, bound=chosen.clip_norm,
            mode=terms.noise_mode, noise=noise,
        )  # fmt: skip
        velocity = chosen.momentum * velocity + total.reshape(weights.shape) / denominator
        weights = weights - chosen.learning_rate * velocity
        if step >= first:
            average += weights / (chosen.rounds - first)
    return LinearClassifier(average, chosen.bias, (events,) * len(sites))


def _count_ratio(settings: LinearSettings) -> float:
    """With sampling: noise of the count over that of a step, as if amplification were q."""
    precision = settings.rounds * settings.sample_rate**2
    return math.sqrt((1.0 - settings.count_share) / (settings.count_share * precision))
