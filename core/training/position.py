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
from core.models.layout import shared_layout, train_layout
from core.wire import tensors


def starting_weights(
    spec: RunSpec, client_id: str, frame: Frame, inputs: Mapping[str, bytes]
) -> NDArray[np.float64]:
    """[P of ``train_layout``] phi as published and, where codes are trained, the client's own.

    Raises ``TensorFileError`` or ``ValueError`` for weights of another shape.
    """
    content, _ = tensors.unpack(inputs["weights"])
    parts = shared_layout(spec).split(np.asarray(content["phi"], np.float64))
    if spec.plan.model.codes == "trained":
        offsets = read_offsets(spec, content, len(frame.client_ids))
        own = frame.code(client_id) + offsets[frame.client_ids.index(client_id)]
        parts[TRAINED] = own[:, None]
    return train_layout(spec).join(parts)
