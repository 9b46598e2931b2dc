"""Clip rules: how long one unit's gradient may be, in each part of the parameters.

Neighbouring relation: add or remove one unit. A unit's gradient is split into parts, disjoint sets
of blocks: those with a norm of their own and the *joint* rest. Each part p is scaled to a length of
at most C_p, so one unit moves the sum by at most S = sqrt(sum over parts of C_p^2) in L2.

``fixed``      C / max(C, |g|): shorter gradients stay as they are.
``automatic``  C / (|g| + gamma): every gradient gets nearly the length C, whatever its size, so C
               needs no tuning (Bu et al. 2023, "Automatic clipping"). Its length stays below C.

Edge cases of one unit's gradient g in one part:

==================  =====================  =====================
|g|                 fixed                  automatic
==================  =====================  =====================
0                   0                      0
<= C                g                      C g / (|g| + gamma)
> C                 g C / |g|              C g / (|g| + gamma)
NaN or infinity     0, in ALL parts        0, in ALL parts
C = 0 (ablation)    0                      0
==================  =====================  =====================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

JOINT = "joint"
# Factors are shrunk by a few float32 roundings, so that the clipped vector's exact norm stays
# below C even after it was rounded to float32.
ROUNDING = 1.0 - 4.0 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class ClipRule:
    """``clip_norm`` C of the joint part, ``blocks`` group -> C of its own part.

    ``automatic_gamma``: None for fixed clipping, else gamma > 0 of automatic clipping.
    """

    clip_norm: float
    blocks: Mapping[str, float] = field(default_factory=dict)
    automatic_gamma: float | None = None

    def part(self, group: str) -> str:
        """The part that a group of blocks is clipped in."""
        return group if group in self.blocks else JOINT

    def norm_of(self, part: str) -> float:
        """C of a part."""
        return self.clip_norm if part == JOINT else self.blocks[part]

    def sensitivity(self, groups: Iterable[str]) -> float:
        """S over the groups of a model: the root of the sum of their parts' squared C."""
        parts = {self.part(group) for group in groups}
        return math.hypot(*(self.norm_of(part) for part in sorted(parts)))

    def factors(self, part: str, norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """[U] what gradients of these norms [U] are multiplied with; 0 where not finite."""
        if self.automatic_gamma is None:
            return clip_factors(norms, self.norm_of(part))
        finite = np.isfinite(norms)
        length = np.where(finite, norms, 1.0) + self.automatic_gamma
        return np.where(finite, self.norm_of(part) * ROUNDING / length, 0.0)


def clip_factors(norms: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    """Factor [U] in [0, 1] for each unit's norm [U]; 0 where the norm is not finite."""
    finite = np.isfinite(norms)
    limit = clip_norm * ROUNDING
    if limit == 0.0:
        return np.zeros_like(norms)
    # max() in the denominator: a zero norm divides by the limit, never by zero.
    return np.where(finite, limit / np.maximum(np.where(finite, norms, limit), limit), 0.0)
