"""The files of a published model: weights for everybody, the optimiser's state for the server."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.layout import shared_layout
from core.wire import tensors

Vector = NDArray[np.float64]


def pack_weights(
    spec: RunSpec, round_number: int, phi: Vector, average: Vector, **own: tensors.Array
) -> bytes:
    """The weights file: the iterate (for training) and its running average (for sampling).

    ``own``: what clients have of their own (``core.federation.offsets``). float32, because every
    client downloads it each round; the server keeps phi in float64.
    """
    caveat = spec.plan.privacy.caveat
    return tensors.pack(
        {"phi": phi.astype(np.float32), "average": average.astype(np.float32), **own},
        {
            "kind": "weights",
            "layout": shared_layout(spec).digest,
            "spec": spec.digest,
            "round": str(round_number),
            "guided": "yes" if _is_guided(spec, round_number) else "no",
            **({"caveat": caveat} if caveat else {}),
        },
    )


def _is_guided(spec: RunSpec, round_number: int) -> bool:
    """Whether the classifier of this round's weights was trained, so that it may choose labels."""
    has_one = spec.plan.model.classifier == "linear" and spec.plan.privacy.classifier_clip_norm > 0
    return has_one and round_number >= spec.sketch_rounds


def pack_optimiser(
    spec: RunSpec,
    round_number: int,
    phi: Vector,
    first: Vector,
    second: Vector,
    **kept: tensors.Array,
) -> bytes:
    """The server's own state; ``kept``: releases that the next round needs again, offsets."""
    metadata = {"kind": "optimiser", "spec": spec.digest, "round": str(round_number)}
    return tensors.pack({"phi": phi, "first": first, "second": second, **kept}, metadata)
