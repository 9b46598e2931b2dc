"""What one unit adds to the report round's vector: names, shapes and weights of its blocks.

A unit is either held out or a member (``core.training.holdout``), and fills the blocks of its part
only. A record's part of a block has L2 norm at most 1 before its weight; the weights of a part have
squares that sum to 1. So a record's vector, and the mean of them over a unit's records, has L2 norm
at most 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.federation.plan import RunSpec

MOST_CONFUSED = 16  # classes up to which the whole confusion matrix is counted
MOST_DOMAINS = 32  # clients up to which the classifier of each one's code is tried
FEATURE_PAIRS = 128  # of random Fourier features for MMD
CELLS = 12  # of the map, each way

# Quantiles of the distances between a synthetic row and its nearest other one, and multiples of
# the last: the public thresholds of the distance histograms.
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
STRETCHES = (1.1, 1.25, 1.5)
DISTANCES = len(QUANTILES) + len(STRETCHES)
# Public thresholds of d1 / d2, the distances to the nearest and the next synthetic row.
RATIOS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)

HELD_OUT, MEMBERS = "held_out", "members"
# Relative weights. They are divided by the root of their part's sum of squares.
_WEIGHTS: dict[str, dict[str, float]] = {
    HELD_OUT: {
        "count": 0.25, "confusion": 0.4, "right": 0.35, "domains": 0.25, "features": 0.35,
        "inside": 0.25, "nearest": 0.45, "ratio": 0.25, "map": 0.35,
    },
    MEMBERS: {"count": 0.3, "nearest": 0.8, "ratio": 0.5},
}  # fmt: skip


def blocks(spec: RunSpec) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, shape) of every block in order; names are ``part.block``.

    held_out: ``count`` of units; ``confusion`` of true and predicted class [C, C], of more than 16
    classes true class and (wrong, right) [C, 2]; ``right``, those answers in one number, whose
    noise does not grow with the classes; ``domains``, right answers of the classifiers of up to 32
    clients' codes; ``features``, random Fourier features; ``inside``, whether the record lies in
    the synthetic manifold; ``nearest`` and ``ratio``, histograms of the distance to the nearest
    synthetic row and of d1 / d2; ``map``, a 2-D histogram. members: three of these.
    """
    classes = len(spec.space.classes)
    shapes: dict[str, tuple[int, ...]] = {
        "count": (1,),
        "confusion": (classes, classes if classes <= MOST_CONFUSED else 2),
        "right": (1,),
        "domains": (MOST_DOMAINS,),
        "features": (2 * FEATURE_PAIRS,),
        "inside": (1,),
        "nearest": (DISTANCES + 1,),
        "ratio": (len(RATIOS) + 1,),
        "map": (CELLS, CELLS),
    }
    return tuple(
        (f"{part}.{name}", shapes[name]) for part, names in _WEIGHTS.items() for name in names
    )


def weights() -> Mapping[str, float]:
    """``part.block`` -> its weight; the squares of each part's weights sum to 1."""
    return {
        f"{part}.{name}": weight / math.hypot(*names.values())
        for part, names in _WEIGHTS.items()
        for name, weight in names.items()
    }
