"""DP class means: the simplest honest private generator. Simulation only (reads real records).

Every site releases one noised vector of class counts and class sums of directions at the whole
budget; a class is its pooled mean with isotropic spread. No hypernetwork, no rounds, no shrinkage.

Privacy: per site one Gaussian event, add or remove one unit, sensitivity S (core.training.sketch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.baselines.common import EventsBySite, known, noise_std, released_sum
from core.federation.plan import EmbeddingSpace, Plan, PrivacyPlan, RunSpec, calibrate
from core.federation.rule import NoiseMode
from core.models.layout import sketch_layout
from core.privacy.events import PrivacyEvent
from core.privacy.mechanism import sensitivity
from core.privacy.noise import NoiseSource
from core.training.sketch import clipped_sketch


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """Pooled noised ``means`` [C, d] of directions, class ``probs`` [C], ``spread`` per coordinate.

    ``event`` is what each of ``sites`` sites executed, once.
    """

    means: NDArray[np.float64]
    probs: NDArray[np.float64]
    spread: float
    event: PrivacyEvent
    sites: int
    private: bool = True

    @property
    def events(self) -> EventsBySite:
        """By site."""
        return ((self.event,),) * self.sites

    def sample(self, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``n`` rows x [n, d] on the sphere of radius sqrt(d) and labels [n]."""
        draw = np.random.default_rng(seed)
        y = draw.choice(len(self.probs), size=n, p=self.probs).astype(np.int64)
        x = self.means[y] + self.spread * draw.normal(size=(n, self.means.shape[1]))
        x *= math.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True)
        return x.astype(np.float32), y


def class_means(
    sites: Sequence[EmbeddingDataset],
    space: EmbeddingSpace,
    *,
    epsilon: float,
    delta: float,
    n_max: int,
    noise: NoiseSource,
    unit: str = "record",
    noise_mode: NoiseMode = "local",
) -> ClassMeans:
    """Release and pool the class means of ``sites``, each at (epsilon, delta).

    ``noise_mode`` "aggregated" needs secure aggregation: see ``baselines.common``.
    """
    privacy = PrivacyPlan.model_validate(
        {
            "epsilon": epsilon,
            "delta": delta,
            "n_max": n_max,
            "unit": unit,
            "rounds": 0,
            "sketch_steps": 1,
        }
    )
    plan = Plan(name="class-means", space=space.name, privacy=privacy, purpose="simulation")
    spec = RunSpec(run_id="baseline", plan=plan, space=space, noise=calibrate(privacy))
    bound = sensitivity(spec, 0)
    total = released_sum(
        [clipped_sketch(spec, known(site, len(space.classes))) for site in sites],
        z=spec.noise.sketch_multiplier,
        bound=bound,
        mode=noise_mode,
        noise=noise,
    )
    parts = sketch_layout(spec).split(total)
    std = noise_std(spec.noise.sketch_multiplier, bound, len(sites), noise_mode)
    floor = max(1.0, 2.0 * std / plan.sketch.count_weight)
    counts = np.maximum(parts["counts"] / plan.sketch.count_weight, floor)
    means = parts["sums"] / plan.sketch.mean_weight / counts[:, None]
    # The noise's own share of |mean|^2 is known and taken off before the spread is read from it.
    noise_share = space.dim * (std / plan.sketch.mean_weight / counts) ** 2
    lengths = np.maximum(np.sum(means**2, axis=1) - noise_share, 0.0)
    probs = counts / counts.sum()
    spread = math.sqrt(max(1.0 - float(probs @ lengths), 1e-3) / space.dim)
    return ClassMeans(np.asarray(means), np.asarray(probs), spread, spec.event(0), len(sites))
