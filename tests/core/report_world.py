"""A small run with a report round, and its query, for the tests of that round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import Noise, RunSpec
from core.privacy.coins import CoinStream
from core.simulation import Simulated
from core.training.local import clipped_total
from tests.core import worlds

NOISE = Noise(
    sketch_multiplier=0.05, train_multiplier=0.5, validate_multiplier=0.2, report_multiplier=0.5
)


def spec_of(privacy: Mapping[str, Any] | None = None, **changes: Any) -> RunSpec:
    asked = {"rounds": 2, "clip_norm": 1.0, "report_precision": 0.2, "report_holdout": 0.4}
    return worlds.spec(
        privacy=asked | dict(privacy or {}), noise=changes.pop("noise", NOISE), **changes
    )


def coins(spec: RunSpec, number: int, secret: bytes = worlds.SECRET) -> CoinStream:
    return CoinStream(secret, spec.run_id, number, 1)


def inputs_of(run: Simulated, number: int) -> dict[str, bytes]:
    if number == 0 or number > len(run.rounds):
        return {}
    before = run.rounds[number - 1]
    return {"frame": before.frame, "weights": before.weights}


def query(
    spec: RunSpec, run: Simulated, data: EmbeddingDataset, number: int | None = None
) -> NDArray[np.float64]:
    """What client a adds in a round (the report round), before noise."""
    number = spec.last_round if number is None else number
    return clipped_total(spec, number, "a", data, inputs_of(run, number), coins(spec, number))
