"""Is an update well formed, finite and as noisy as promised? Decided before it counts.

The null-coordinate test is ``core.federation.null_test``. It finds broken sites (no noise, noise of
the wrong scale), not malicious ones.

The norm limit likewise finds broken sites only: at most N_max clipped units a step, and the noise,
whose norm passes its part of the limit with probability below 1e-21.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import (
    UpdateNoiseImplausible,
    UpdateNormImplausible,
    UpdateNotFinite,
    UpdateUnreadable,
    UpdateWrongDtype,
    UpdateWrongLayout,
    UpdateWrongShape,
)
from core.federation.null_test import FALSE_ALARM as FALSE_ALARM
from core.federation.null_test import accepted
from core.federation.plan import RunSpec
from core.models.layout import NULL_COORDINATES, layout_of
from core.privacy.mechanism import release_grid, sensitivity
from core.wire import tensors

TENSOR = "update"
_PIECE = 1 << 15  # coordinates
_HEADER_ALLOWANCE = 4_096  # bytes: a safetensors header with our metadata is below 1 KiB


@dataclass(frozen=True)
class UpdateExpectation:
    """What one round's update must look like; computed from public values only."""

    layout: str
    size: int
    length: int
    max_bytes: int
    noise_std: float
    norm_limit: float
    steps: int


def expectation(spec: RunSpec, round_number: int) -> UpdateExpectation:
    """Layout digest, length (coordinates), size limit (bytes), noise, norm and steps of a round."""
    layout = layout_of(spec, round_number)
    bound = sensitivity(spec, round_number)
    event = spec.event(round_number)
    grid = None if spec.is_secure(round_number) else release_grid(spec, round_number)
    of_step = event.noise_multiplier * bound if grid is None else grid.noise_std
    noise_std = of_step * float(np.sqrt(event.steps))
    # The noise part's norm concentrates at s * sqrt(P); 10 s more is never reached by chance.
    noise_norm = noise_std * (np.sqrt(layout.size) + 10.0)
    return UpdateExpectation(
        layout=layout.digest,
        size=layout.size,
        length=layout.update_length,
        max_bytes=4 * layout.update_length + _HEADER_ALLOWANCE,
        noise_std=noise_std,
        norm_limit=float(event.steps * spec.plan.privacy.n_max * bound + noise_norm),
        steps=event.steps,
    )


def read_update(body: bytes, expected: UpdateExpectation) -> NDArray[np.float32]:
    """The checked vector [P + null] of an update's bytes. Raises an ``UpdateRejected``."""
    try:
        content, metadata = tensors.unpack(body)
    except tensors.TensorFileError as error:
        raise UpdateUnreadable(error.message, mend="Send one safetensors file.") from error
    if set(content) != {TENSOR}:
        raise UpdateWrongLayout(
            f"the file must hold one tensor {TENSOR!r}, it holds {sorted(content)}", field=TENSOR
        )
    if metadata.get("layout") != expected.layout:
        raise UpdateWrongLayout(
            f"layout {metadata.get('layout')!r} is not this round's {expected.layout}",
            field="metadata.layout",
            mend="Train against the work order's plan and send its update_layout.",
        )
    vector = content[TENSOR]
    if vector.dtype != np.float32:
        raise UpdateWrongDtype(f"dtype {vector.dtype}, expected float32", field=TENSOR)
    if vector.shape != (expected.length,):
        raise UpdateWrongShape(
            f"shape {list(vector.shape)}, expected [{expected.length}]", field=TENSOR
        )
    update: NDArray[np.float32] = vector.astype(np.float32, copy=False)
    if not np.isfinite(update).all():
        raise UpdateNotFinite("the update holds NaN or infinite values", field=TENSOR)
    return update


def _norm(vector: NDArray[np.float32]) -> float:
    """|vector| in float64, piece by piece: a copy of a large update costs more than its sum."""
    total = 0.0
    for start in range(0, len(vector), _PIECE):
        piece = vector[start : start + _PIECE].astype(np.float64)
        total += float(np.dot(piece, piece))
    return math.sqrt(total)


def check_update(body: bytes, expected: UpdateExpectation) -> None:
    """Every check that an update must pass before it counts. Raises an ``UpdateRejected``."""
    update = read_update(body, expected)
    noise = _norm(update[expected.size :]) / expected.noise_std
    low, high = accepted(expected.steps)
    if not low <= noise <= high:
        ratio = noise / np.sqrt(NULL_COORDINATES)
        raise UpdateNoiseImplausible(
            f"the null coordinates carry {ratio:.3g} times the promised noise",
            field=TENSOR,
            mend="Update the site's software; do not change its noise.",
        )
    norm = _norm(update[: expected.size])
    if norm > expected.norm_limit:
        raise UpdateNormImplausible(
            f"norm {norm:.4g} is above the limit {expected.norm_limit:.4g} of n_max clipped units",
            field=TENSOR,
        )
