"""Rounds whose released updates a test writes itself, and the real aggregation over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.federation.aggregate import Aggregated, aggregate
from core.federation.plan import RunSpec
from core.federation.updates import TENSOR
from core.models.layout import NULL_COORDINATES, layout_of
from core.storage import sha256_of
from core.wire import tensors
from core.wire.messages import AggregateInput, AggregateJob

Matrix = NDArray[np.float64]


def update_of(spec: RunSpec, number: int, vector: NDArray[np.floating]) -> bytes:
    """The file of a released vector [P]; its null coordinates are zero, which nobody sums."""
    layout = layout_of(spec, number)
    assert vector.shape == (layout.size,)
    whole = np.concatenate([vector, np.zeros(NULL_COORDINATES)]).astype(np.float32)
    metadata = {"layout": layout.digest, "spec": spec.digest, "round": str(number)}
    return tensors.pack({TENSOR: whole}, metadata)


def aggregated(
    spec: RunSpec, number: int, vectors: Sequence[NDArray[np.floating]],
    before: Aggregated | None = None,
) -> Aggregated:  # fmt: skip
    """The round of clients c0, c1, ... (named Site 0, Site 1, ...) that released ``vectors``."""
    objects: dict[str, bytes] = {}

    def put(body: bytes) -> str:
        objects[sha256_of(body)] = body
        return sha256_of(body)

    previous = {}
    if before is not None:
        previous = {role: put(getattr(before, role)) for role in ("frame", "weights", "optimiser")}
    job = AggregateJob(
        job_id="j", lease_token="t", lease_s=1, run_id=spec.run_id, round_number=number,
        kind=spec.kind(number), spec=spec, **previous,
        updates=tuple(
            AggregateInput(
                client_id=f"c{i}", client=f"site-{i}", digest=put(update_of(spec, number, vector))
            )
            for i, vector in enumerate(vectors)
        ),
    )  # fmt: skip
    return aggregate(job, objects.__getitem__)


def sketches(spec: RunSpec, clients: int, seed: int = 0) -> list[Matrix]:
    """Released sketches of sites that are alike, well above their noise."""
    size = layout_of(spec, 0).size
    draw = np.random.default_rng(seed)
    common = 30.0 * np.abs(draw.normal(size=size))
    return [common + draw.normal(size=size) for _ in range(clients)]
