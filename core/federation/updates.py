"""Is an update well formed, finite and as noisy as promised? Decided before it counts.

The null-coordinate test. Every update ends with 256 coordinates whose gradient is zero by
construction and whose noise is the same N(0, s^2) as everywhere else, s = noise multiplier times
sensitivity (times the root of E for the sum of E local steps). For an honest site sum(null^2) / s^2
is chi-square with 256 degrees of freedom, so a two-sided test with 0.5e-9 in each tail raises a
false alarm once in a thousand million updates.
It finds broken sites (no noise, noise of the wrong scale, a wrong layout), not malicious ones: a
site that wants to can put honest noise there and none elsewhere.

The norm limit likewise finds broken sites only: at most N_max clipped units a step, and the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from core.errors import (
    UpdateNoiseImplausible,
    UpdateNormImplausible,
    UpdateNotFinite,
    UpdateUnreadable,
    UpdateWrongDtype,
    UpdateWrongLayout,
    UpdateWrongShape,
)
from core.federation.plan import RunSpec
from core.models.layout import NULL_COORDINATES, layout_of
from core.privacy.mechanism import sensitivity
from core.wire import tensors

FALSE_ALARM = 1e-9
TENSOR = "update"
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


def expectation(spec: RunSpec, round_number: int) -> UpdateExpectation:
    """Layout digest, length (coordinates), size limit (bytes), noise and norm of a round."""
    layout = layout_of(spec, round_number)
    bound = sensitivity(spec, round_number)
    event = spec.event(round_number)
    noise_std = event.noise_multiplier * bound * float(np.sqrt(event.steps))
    # The noise part's norm concentrates at s * sqrt(P); 10 s more is never reached by chance.
    noise_norm = noise_std * (np.sqrt(layout.size) + 10.0)
    return UpdateExpectation(
        layout=layout.digest,
        size=layout.size,
        length=layout.update_length,
        max_bytes=4 * layout.update_length + _HEADER_ALLOWANCE,
        noise_std=noise_std,
        norm_limit=float(event.steps * spec.plan.privacy.n_max * bound + noise_norm),
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


@cache
def _plausible(false_alarm: float) -> tuple[float, float]:
    """Bounds of the statistic of honest null coordinates."""
    low = float(stats.chi2.ppf(false_alarm / 2, NULL_COORDINATES))
    return low, float(stats.chi2.isf(false_alarm / 2, NULL_COORDINATES))


def check_update(body: bytes, expected: UpdateExpectation) -> None:
    """Every check that an update must pass before it counts. Raises an ``UpdateRejected``."""
    update = read_update(body, expected).astype(np.float64)
    null = update[expected.size :]
    statistic = float(null @ null) / expected.noise_std**2
    low, high = _plausible(FALSE_ALARM)
    if not low <= statistic <= high:
        ratio = float(np.sqrt(statistic / NULL_COORDINATES))
        raise UpdateNoiseImplausible(
            f"the null coordinates carry {ratio:.3g} times the promised noise",
            field=TENSOR,
            mend="Update the site's software; do not change its noise.",
        )
    norm = float(np.linalg.norm(update[: expected.size]))
    if norm > expected.norm_limit:
        raise UpdateNormImplausible(
            f"norm {norm:.4g} is above the limit {expected.norm_limit:.4g} of n_max clipped units",
            field=TENSOR,
        )
