"""Where a client's training round begins: all weights, from released values only.

Everything here is judged before any record is used, whole: a failure tells nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.codes import TRAINED, read_offsets
from core.models.frame import Frame
from core.models.layout import kept_layout, shared_layout, train_layout
from core.training.kept import Kept
from core.wire import tensors


def starting_weights(
    spec: RunSpec,
    client_id: str,
    frame: Frame,
    inputs: Mapping[str, bytes],
    kept: Kept | None = None,
) -> NDArray[np.float64]:
    """[P of ``train_layout``] phi as published and what the client has of its own: a trained code,
    a local encoder (``kept``; where it has none yet, the public initial one).

    Raises ``TensorFileError`` or ``ValueError`` for weights of another shape.
    """
    content, _ = tensors.unpack(inputs["weights"])
    parts = shared_layout(spec).split(np.asarray(content["phi"], np.float64))
    if spec.plan.model.codes == "trained":
        offsets = read_offsets(spec, content, len(frame.client_ids))
        own = frame.code(client_id) + offsets[frame.client_ids.index(client_id)]
        parts[TRAINED] = own[:, None]
    if spec.plan.model.encoder == "local":
        parts |= kept_layout(spec).split((kept or Kept.start(spec)).weights)
    return train_layout(spec).join(parts)
