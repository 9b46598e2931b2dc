"""No privacy at all: the ceiling (all real records) and what each site gets alone.

Both use raw records without noise, so epsilon is infinite. Simulation only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.baselines.common import EventsBySite, known, on_sphere
from core.evaluation.utility import fit
from core.federation.plan import EmbeddingSpace


@dataclass(frozen=True, eq=False)
class RealData:
    """Valid records ``x`` [n, d] and ``y`` [n] of all sites together; ``classes`` is C."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    classes: int
    sites: int
    private: bool = False

    @property
    def events(self) -> EventsBySite:
        """Nothing was released under a guarantee."""
        return ((),) * self.sites

    def sample(self, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Real records on the sphere of radius sqrt(d), none twice before all came once."""
        if len(self.y) == 0:
            raise ValueError("there are no records to draw from")
        draw = np.random.default_rng(seed)
        turns = [draw.permutation(len(self.y)) for _ in range(-(-n // len(self.y)))]
        rows = np.concatenate([*turns, np.zeros(0, np.int64)])[:n].astype(np.int64)
        return on_sphere(self.x[rows]), self.y[rows]

    def predict(self, x: NDArray[np.floating]) -> NDArray[np.int64]:
        """Labels by a classifier of ALL records; without any, every class in turn (a guess)."""
        if len(self.y) == 0:
            return np.arange(len(x), dtype=np.int64) % self.classes
        return fit(self.x, self.y)(x)


@dataclass(frozen=True, eq=False)
class LocalOnly:
    """One classifier for each site, from its own records. Scores are means over ``members``."""

    members: tuple[RealData, ...]
    private: bool = False

    @property
    def events(self) -> EventsBySite:
        """Nothing left any site."""
        return ((),) * len(self.members)


def real_data(sites: Sequence[EmbeddingDataset], space: EmbeddingSpace) -> RealData:
    """The ceiling: every site's valid records of known classes, in one place."""
    own = [known(site, len(space.classes)) for site in sites]
    return RealData(
        x=np.concatenate([site.x[site.valid] for site in own]),
        y=np.concatenate([site.y[site.valid] for site in own]),
        classes=len(space.classes),
        sites=len(sites),
    )


def local_only(sites: Sequence[EmbeddingDataset], space: EmbeddingSpace) -> LocalOnly:
    """What each site can do without any federation."""
    return LocalOnly(tuple(real_data([site], space) for site in sites))
