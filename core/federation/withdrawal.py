"""What a round publishes does without the own part of clients that have withdrawn.

Their codes, the offsets and label shifts that belong to them, and their sizes are taken out of the
files: nobody can ask for rows under such a code, and no other site trains with it from then on.
What was summed over all clients (class means, spread, MMD targets, weights) cannot be taken back:
it holds what they released.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from core.federation import label_shift, offsets
from core.models.codes import AVERAGE, OFFSETS
from core.models.frame import Frame
from core.models.label_shift import LABEL_SHIFT
from core.wire import tensors

if TYPE_CHECKING:
    from core.federation.aggregate import Aggregated

_IN_WEIGHTS = (OFFSETS, AVERAGE, LABEL_SHIFT)
_IN_OPTIMISER = (*offsets.PER_CLIENT, *label_shift.PER_CLIENT)
_SIZE = 1.0  # what a client is taken to have whose size is not known


def without(made: Aggregated, withdrawn: Collection[str]) -> Aggregated:
    """The files of a round with the rows of these clients (ids) set to neutral ones."""
    frame = Frame.from_bytes(made.frame)
    places = [place for place, client in enumerate(frame.client_ids) if client in withdrawn]
    if not places:
        return made
    codes, sizes = frame.codes.copy(), frame.sizes.copy()
    codes[places], sizes[places] = 0.0, _SIZE
    _, metadata = tensors.unpack(made.frame)
    return replace(
        made,
        frame=replace(frame, codes=codes, sizes=sizes).to_bytes(metadata["spec"]),
        weights=_neutral(made.weights, _IN_WEIGHTS, places),
        optimiser=_neutral(made.optimiser, _IN_OPTIMISER, places),
    )


def _neutral(body: bytes, names: Collection[str], places: list[int]) -> bytes:
    content, metadata = tensors.unpack(body)
    changed = {name: np.array(value) for name, value in content.items()}
    for name in names:
        if name in changed:
            changed[name][places] = 0
    return tensors.pack(changed, metadata)
