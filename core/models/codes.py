"""Trained codes: what a client's code is besides the fixed map of its sketch.

The hypernetwork is given v_m = sketch code + offset_m. Offsets begin at 0 and are made of released
values only: of the noised code blocks that clients post (``core.federation.offsets``), or, for a
client that joins later, of a public linear map from sketch codes to offsets. The frame's own
code-linear parts (class means, factors) go by the sketch code alone, and the neutral code is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.wire import tensors

Vector = NDArray[np.float64]

TRAINED = "code.weight"  # the block [c, 1] that holds v_m
OFFSETS, AVERAGE = "offsets", "offsets_average"  # in the weights file, [M, c] in the frame's order


def read_offsets(
    spec: RunSpec, content: Mapping[str, NDArray[np.generic]], clients: int, name: str = OFFSETS
) -> Vector:
    """[M, c] offsets of a weights file's tensors; zeros where codes are not trained.

    Raises ``TensorFileError`` unless they are finite and of that shape, all of them: a site calls
    this before its records are used, so its failure tells nothing of them.
    """
    shape = (clients, spec.plan.model.code_dim)
    if spec.plan.model.codes != "trained":
        return np.zeros(shape)
    found = content.get(name)
    if found is None or found.shape != shape:
        raise tensors.TensorFileError(f"{name} of these weights is not there or not {shape}")
    values = np.asarray(found, np.float64)
    if not np.isfinite(values).all():
        raise tensors.TensorFileError(f"{name} of these weights is not finite")
    return values


def predicted_offsets(codes: Vector, offsets: Vector, new: Vector) -> Vector:
    """[J, c] offsets for sketch codes [J, c], by ridge regression on pairs [M, c], [M, c].

    Without an intercept: the neutral code has no offset. The ridge is the codes' mean square
    length, which shrinks what a single client shows by half, for offsets are as noisy as they are
    few. No result is longer than the longest given offset. M = 0 gives zeros.
    """
    if len(codes) == 0:
        return np.zeros_like(new)
    gram = codes @ codes.T
    ridge = max(float(np.trace(gram)) / len(codes), 1e-12)
    made = new @ codes.T @ np.linalg.solve(gram + ridge * np.eye(len(codes)), offsets)
    longest = float(np.linalg.norm(offsets, axis=1).max())
    lengths = np.linalg.norm(made, axis=1, keepdims=True)
    return np.asarray(made * np.minimum(1.0, longest / np.maximum(lengths, 1e-300)))
