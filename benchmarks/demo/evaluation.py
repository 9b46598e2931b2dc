"""How good the synthetic rows are: train a linear classifier on them, test it on real images.

Simulation: the rows trained on real records, and every test set, read what no party of a real
deployment could read together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.scanner_digits import ScannerDigits
from core.data import EmbeddingDataset
from core.evaluation import utility
from core.evaluation.baselines.class_means import class_means
from core.federation.plan import EmbeddingSpace, Plan
from core.privacy.noise import csprng

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

BASELINE_SEED = 1  # of the baseline's samples; its noise comes from the operating system


@dataclass(frozen=True)
class Row:
    """One line of the table; accuracies are fractions on real held-out images."""

    trained_on: str
    private: bool
    rows: int
    accuracy: float
    balanced: float
    per_site: dict[str, float]


def read_table(path: Path, space: EmbeddingSpace) -> tuple[Floats, Labels]:
    """Rows [n, d] and class ids [n] of a synthetic table, as a data scientist would read it."""
    table = pq.read_table(path)
    column = table.column("embedding").combine_chunks()
    x = column.values.to_numpy(zero_copy_only=False).reshape(len(column), space.dim)
    names = {name: index for index, name in enumerate(space.classes)}
    y = np.array([names[name] for name in table.column("label").to_pylist()], dtype=np.int64)
    return np.asarray(x, dtype=np.float32), y


def baseline(data: ScannerDigits, plan: Plan, rows: int) -> tuple[Floats, Labels]:
    """Samples of DP class means at the plan's whole (epsilon, delta), all of it for the means."""
    found = class_means(
        [EmbeddingDataset.from_arrays(site.train_x, site.train_y) for site in data.sites],
        data.space,
        epsilon=plan.privacy.epsilon,
        delta=plan.privacy.delta,
        n_max=plan.privacy.n_max,
        noise=csprng(),
        unit=plan.privacy.unit,
    )
    return found.sample(rows, BASELINE_SEED)


def score(name: str, train: tuple[Floats, Labels], data: ScannerDigits, *, private: bool) -> Row:
    """Fit on ``train``; score on all sites' held-out images together and site by site."""
    x, y = train
    if len(np.unique(y)) < 2:
        raise ValueError(f"{name}: a classifier needs at least two classes in its training rows")
    predict = utility.fit(x, y)  # once for all test sets
    guesses = [predict(site.test_x) for site in data.sites]
    pooled = utility.score(
        np.concatenate(guesses), np.concatenate([site.test_y for site in data.sites])
    )
    return Row(
        trained_on=name,
        private=private,
        rows=len(y),
        accuracy=pooled.accuracy,
        balanced=pooled.balanced_accuracy,
        per_site={
            site.name: utility.score(guess, site.test_y).accuracy
            for site, guess in zip(data.sites, guesses, strict=True)
        },
    )
