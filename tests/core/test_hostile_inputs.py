"""Dishonest frames and weights: whether a site fails says nothing about its records.

An update that comes, or does not come, is seen from outside and carries no noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from core.data import EmbeddingDataset
from core.federation.aggregate import pack_weights
from core.federation.plan import Noise
from core.models.build import build
from core.models.frame import Frame
from core.models.generator import initial_weights
from core.privacy.noise import csprng
from core.training.local import release
from core.training.sketch import clipped_sketch
from core.wire import tensors
from tests.core import worlds

SPEC = worlds.spec(
    noise=Noise(sketch_multiplier=1.0, spread_multiplier=1.0, train_multiplier=1.0),
    privacy={"sketch_steps": 2, "sample_rate": 1.0},
)
DATA = worlds.clusters(30)
FRAME = build(SPEC, [clipped_sketch(SPEC, DATA)] * 2, ["a", "b"], ["a", "b"])
PHI = initial_weights(SPEC)
WEIGHTS = pack_weights(SPEC, 0, PHI, PHI)


def _part(keep: np.ndarray) -> EmbeddingDataset:
    return EmbeddingDataset.from_arrays(DATA.x[keep], DATA.y[keep])


SITES = {
    "empty": _part(np.zeros(30, dtype=bool)),
    "without class 2": _part(DATA.y != 2),
    "all classes": DATA,
}


def _spoilt_class() -> Frame:
    base = FRAME.base.copy()
    base[2] = np.nan
    return replace(FRAME, base=base)


def _works(
    data: EmbeddingDataset, number: int, *, frame: Frame, weights: bytes, client: str
) -> bool:
    inputs = {"frame": frame.to_bytes(SPEC.digest), "weights": weights}
    send = partial(release, secret=worlds.SECRET, noise=csprng())
    try:
        send(SPEC, number, 1, client, data, inputs)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    "frame",
    [
        _spoilt_class,
        lambda: replace(FRAME, base=FRAME.base[:2]),
        lambda: replace(FRAME, directions=FRAME.directions[:, :2]),
        lambda: replace(FRAME, scale=np.zeros(1)),
        lambda: replace(FRAME, basis=FRAME.basis[:, :3]),
    ],
)
def test_an_unusable_frame_fails_at_every_site_alike(
    frame: Callable[[], Frame], number: int
) -> None:
    for data in SITES.values():
        assert not _works(data, number, frame=frame(), weights=WEIGHTS, client="a")


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_code_and_misshapen_weights_fail_at_every_site_alike(number: int) -> None:
    short = tensors.pack({"phi": np.zeros(3, np.float32)}, {})
    for data in SITES.values():
        assert _works(data, number, frame=FRAME, weights=WEIGHTS, client="a")
        assert not _works(data, number, frame=FRAME, weights=WEIGHTS, client="stranger")
        assert number == 1 or not _works(data, number, frame=FRAME, weights=short, client="a")
