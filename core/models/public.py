"""Public randomness of a run: drawn from the plan's seed, the same at every party, no secret.

One stream for each purpose, all named here, so that no two purposes share their numbers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from core.federation.plan import RunSpec


class Purpose(IntEnum):
    """What a stream is for. A number once used keeps its meaning: replays depend on it."""

    CODES = 1
    BASIS = 2
    INITIAL_WEIGHTS = 3
    PROJECTION = 4
    FREQUENCIES = 5
    MMD = 6
    LIPSCHITZ = 7
    REPORT_FREQUENCIES = 8


def stream(spec: RunSpec, purpose: Purpose, part: int = 0) -> np.random.Generator:
    """The generator of one purpose, from its beginning; of its parts, such as rounds, each one."""
    key, counter = spec.plan.seed, [0, 0, part, int(purpose)]
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
