"""All baselines by name, on one signature, and one score for each of them. Simulation only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.baselines.class_diagonal import class_diagonal
from core.evaluation.baselines.class_means import ClassMeans, class_means
from core.evaluation.baselines.common import Baseline, Predictor, Sampler, Terms
from core.evaluation.baselines.cvae import cvae
from core.evaluation.baselines.gaussian import shared_gaussian
from core.evaluation.baselines.linear import linear_classifier
from core.evaluation.baselines.merf import merf
from core.evaluation.baselines.paper import paper_mode
from core.evaluation.baselines.real import LocalOnly, RealData, local_only, real_data
from core.evaluation.utility import Utility, fit, score
from core.federation.plan import EmbeddingSpace
from core.privacy.noise import NoiseSource

Fit = Callable[[Sequence[EmbeddingDataset], EmbeddingSpace, Terms, NoiseSource], Baseline]


def _real(
    sites: Sequence[EmbeddingDataset], space: EmbeddingSpace, terms: Terms, noise: NoiseSource
) -> RealData:
    return real_data(sites, space)


def _local(
    sites: Sequence[EmbeddingDataset], space: EmbeddingSpace, terms: Terms, noise: NoiseSource
) -> LocalOnly:
    return local_only(sites, space)


def _means(
    sites: Sequence[EmbeddingDataset], space: EmbeddingSpace, terms: Terms, noise: NoiseSource
) -> ClassMeans:
    return class_means(
        sites, space, epsilon=terms.epsilon, delta=terms.delta, n_max=1, noise=noise,
        unit=terms.unit, noise_mode=terms.noise_mode,
    )  # fmt: skip


METHODS: Mapping[str, Fit] = MappingProxyType(
    {
        "real": _real,
        "local-only": _local,
        "class-means": _means,
        "shared-gaussian": shared_gaussian,
        "class-diagonal": class_diagonal,
        "dp-merf": merf,
        "dp-sgd-linear": linear_classifier,
        "dp-cvae": cvae,
        "paper": paper_mode,  # not private: no record-level guarantee
    }
)


def utility(
    found: Baseline,
    x: NDArray[np.floating],
    y: NDArray[np.integer],
    *,
    rows: int,
    seed: int,
) -> Utility:
    """Score on real test records [n, d], [n].

    A predictor labels them itself; of local classifiers the mean score counts; otherwise the
    fixed classifier is trained on ``rows`` synthetic records (TSTR).
    """
    if isinstance(found, LocalOnly):
        each = [score(member.predict(x), y) for member in found.members]
        return Utility(
            accuracy=float(np.mean([u.accuracy for u in each])),
            balanced_accuracy=float(np.mean([u.balanced_accuracy for u in each])),
        )
    if isinstance(found, Predictor):
        return score(found.predict(x), y)
    if isinstance(found, Sampler):
        return score(fit(*found.sample(rows, seed))(x), y)
    raise TypeError(f"{type(found).__name__} neither samples nor predicts")
