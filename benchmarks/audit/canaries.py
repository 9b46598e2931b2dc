"""Records that are made to be found, and the ordinary ones around them.

A canary is a legal record that is as visible as any can be: of a class that no other record has,
orthogonal to all class means of the ordinary records and to the other canaries of its class. Its
residual is then longer than the radius that residuals are clipped to, and its contribution to a
sketch hardly overlaps with another's. Each is one privacy unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import EmbeddingSpace

ORDINARY_CLASSES = 4
_NOISE = 0.3  # length of an ordinary record's deviation from its class mean of length 1


@dataclass(frozen=True, eq=False)
class World:
    """``space``; ``canaries``, m records, in the order of their coins; ``ordinary`` records of the
    audited site and ``elsewhere`` those of another one, without canaries.
    """

    space: EmbeddingSpace
    canaries: EmbeddingDataset
    ordinary: EmbeddingDataset
    elsewhere: EmbeddingDataset

    def site(self, included: NDArray[np.bool_]) -> EmbeddingDataset:
        """The audited site's records if the canaries with a True coin [m] are among them."""
        own, some = self.ordinary, np.flatnonzero(included)
        return EmbeddingDataset.from_arrays(
            np.concatenate([own.x, self.canaries.x[some]]),
            np.concatenate([own.y, self.canaries.y[some]]),
            own.unit + tuple(self.canaries.unit[i] for i in some),
        )


def build_world(canaries: int, dim: int, ordinary: int, seed: int) -> World:
    """``canaries`` in as few classes as hold them orthogonally, ``ordinary`` records at each site.

    Directions are used again in other classes, the last ones first used last: two canaries share
    one only if there are more of them than directions. ``seed`` is public.
    """
    draw = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(draw.standard_normal((dim, dim)))
    means, free = axes[:ORDINARY_CLASSES], axes[ORDINARY_CLASSES:]
    classes = -(-canaries // len(free))
    place = np.arange(canaries)
    y = ORDINARY_CLASSES + place // len(free)
    names = (
        *(f"ordinary-{c}" for c in range(ORDINARY_CLASSES)),
        *(f"rare-{c}" for c in range(classes)),
    )
    space = EmbeddingSpace(
        name="generated", backbone="orthogonal directions", preprocessing="none", dim=dim,
        weights_digest="sha256:" + "0" * 64, classes=names,
    )  # fmt: skip

    def site(name: str) -> EmbeddingDataset:
        labels = draw.integers(0, ORDINARY_CLASSES, ordinary)
        x = means[labels] + _NOISE / np.sqrt(dim) * draw.standard_normal((ordinary, dim))
        units = tuple(f"{name}-{i}".encode() for i in range(ordinary))
        return EmbeddingDataset.from_arrays(x, labels, units)

    units = tuple(f"canary-{i}".encode() for i in place)
    found = EmbeddingDataset.from_arrays(free[place % len(free)], y, units)
    return World(space, found, site("here"), site("elsewhere"))
