"""Several DP-SGD steps of one site in one training round, posted as one vector.

In each of E steps the site draws a Poisson batch of its own (coins of that step), computes the
clipped sum of unit gradients at its current weights, adds N(0, (z S)^2 I) with fresh noise, and
moves its copy of the weights:

    w <- w - learning rate * noised sum / (q * released noised units of this client)

It posts the sum over steps of the noised sums, a public linear function of how far it moved.

Formal guarantee, for adding or removing one unit: given the noised sums before it, a step is one
Poisson-subsampled Gaussian of sensitivity S (``core.privacy.mechanism.sensitivity``) and noise
multiplier z. Weights between steps are functions of what was published and of noised sums, so E
steps compose adaptively: the round's event has ``steps = E``. The posted sum is post-processing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models.frame import Frame
from core.models.layout import NULL_COORDINATES
from core.privacy.coins import CoinStream
from core.privacy.mechanism import noised, release_grid, sensitivity
from core.privacy.noise import NoiseSource
from core.training.compute import CPU, Compute
from core.training.gradients import clipped_sum
from core.wire import tensors

# Local weights stay finite in float32, whatever denominators a coordinator thinks of: what is
# done with weights that are not is nobody's promise.
_LARGEST = 1e30


def noised_steps(
    spec: RunSpec,
    round_number: int,
    client_id: str,
    dataset: EmbeddingDataset,
    frame: Frame,
    weights: NDArray[np.float64],
    coins: CoinStream,
    noise: NoiseSource,
    compute: Compute = CPU,
) -> NDArray[np.float32]:
    """[P + null] the sum over the round's local steps of their noised clipped sums.

    With discrete noise each step's release is on the round's grid, with noise of its own.

    ``weights`` [P] where the round begins. Each coordinate carries noise of variance E (z S)^2.
    Raises ``TensorFileError`` for a frame that gives the client no positive size; before any record
    is used.
    """
    event, bound = spec.event(round_number), sensitivity(spec, round_number)
    grid = release_grid(spec, round_number)
    rate = 0.0
    if event.steps > 1:
        rate = spec.plan.privacy.local_learning_rate / expected_batch(spec, frame, client_id)
    posted: NDArray[np.float64] | None = None
    for step in range(event.steps):
        total = clipped_sum(
            spec, dataset, frame, weights, client_id, coins.at_step(step), compute=compute
        )
        released = noised(
            total,
            null_coordinates=NULL_COORDINATES,
            noise_multiplier=event.noise_multiplier,
            bound=bound,
            noise=noise,
            grid=grid,
        ).astype(np.float64)
        posted = released if posted is None else posted + released
        if step + 1 < event.steps:
            moved = np.nan_to_num(weights - rate * released[: weights.size])
            weights = np.clip(moved, -_LARGEST, _LARGEST)
    return np.asarray(posted, np.float32)


def expected_batch(spec: RunSpec, frame: Frame, client_id: str) -> float:
    """q times the client's released noised units: the public denominator of its mean gradient.

    Raises ``TensorFileError`` if the frame gives it no positive size.
    """
    size = float(frame.sizes[frame.client_ids.index(client_id)])
    batch = spec.plan.privacy.sample_rate * size
    if not batch > 0.0:
        raise tensors.TensorFileError("sizes of this frame are not positive")
    return batch
