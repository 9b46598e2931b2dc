"""One site's part of one round: from a work order to the noised bytes that leave the house.

With a local encoder the client also keeps a part of what was noised (``core.training.kept``): a
blob that its next round needs, once this round's update was accepted.

The same function serves Celery workers, site agents and simulations. It draws noise exactly once
for an order; callers persist the returned bytes before they send anything and resend those bytes
on every retry. A new attempt is a new order, a new draw and a new event in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.errors import PlanRefused
from core.federation.plan import RunSpec
from core.federation.updates import TENSOR
from core.models.frame import Frame
from core.models.layout import NULL_COORDINATES, layout_of
from core.privacy.coins import CoinStream
from core.privacy.mechanism import noised, release_grid, sensitivity
from core.privacy.noise import NoiseSource
from core.training.compute import CPU, Compute
from core.training.gradients import clipped_sum
from core.training.holdout import held_out_of, members_of
from core.training.kept import Kept, posted_part
from core.training.local_steps import expected_batch, noised_steps
from core.training.position import starting_weights
from core.training.report import Comparison, report_sum
from core.training.sketch import clipped_sketch
from core.training.spread import clipped_spread
from core.training.validation import read_classifiers, right_answers
from core.wire import tensors
from core.wire.messages import WorkOrder


@dataclass(frozen=True)
class Released:
    """What one order's noise was drawn for. Both parts are noised; only ``update`` leaves.

    ``kept`` (None unless the plan has local encoders) counts once ``update`` was accepted.
    """

    update: bytes
    kept: bytes | None = None


def execute(
    order: WorkOrder,
    dataset: EmbeddingDataset,
    inputs: Mapping[str, bytes],
    *,
    secret: bytes,
    noise: NoiseSource,
    compute: Compute = CPU,
    kept: bytes | None = None,
) -> Released:
    """The update of an order: clipped sum plus noise as a safetensors file; and what is kept.

    ``inputs`` holds the order's downloaded objects by role (``frame`` and ``weights``; none for a
    sketch); ``kept`` what the client kept of its last accepted training round, if it has one.
    ``secret`` (32 bytes or more) keys inclusion, coins and latent draws and never leaves the site.
    Sensitivity and neighbouring relation: ``core.privacy.mechanism``.
    Raises ``PlanRefused`` for seeded noise outside simulation, and for a plan of the mode ``paper``
    whatever its purpose.
    """
    if not noise.private and order.spec.plan.purpose != "simulation":
        raise PlanRefused("seeded noise is refused outside simulation", field="noise")
    return release(
        order.spec,
        order.round_number,
        order.attempt,
        order.client_id,
        dataset,
        inputs,
        secret=secret,
        noise=noise,
        compute=compute,
        kept=kept,
    )


def release(
    spec: RunSpec,
    round_number: int,
    attempt: int,
    client_id: str,
    dataset: EmbeddingDataset,
    inputs: Mapping[str, bytes],
    *,
    secret: bytes,
    noise: NoiseSource,
    compute: Compute = CPU,
    kept: bytes | None = None,
) -> Released:
    """``execute`` without the envelope of a work order."""
    if caveat := spec.plan.privacy.caveat:
        raise PlanRefused(
            f"a plan of mode {spec.plan.privacy.mode!r} has {caveat}",
            field="plan.privacy.mode",
            mend="Compare with it in a simulation: core.paper.simulate_paper.",
        )
    coins = CoinStream(secret, spec.run_id, round_number, attempt)
    if spec.kind(round_number) == "train":
        dataset = members_of(spec, round_number, client_id, dataset, coins)
        frame = _frame(spec, inputs, client_id)
        state = Kept.read(spec, round_number, client_id, kept)
        weights = starting_weights(spec, client_id, frame, inputs, state)
        sums = noised_steps(
            spec, round_number, client_id, dataset, frame, weights, coins, noise, compute
        )
        update = packed(spec, round_number, posted_part(spec, sums))
        if state is None:
            return Released(update)
        after = state.after(spec, expected_batch(spec, frame, client_id), sums)
        return Released(update, after.to_bytes(spec, round_number, client_id))
    total = clipped_total(spec, round_number, client_id, dataset, inputs, coins, compute=compute)
    return Released(noised_update(spec, round_number, total, noise))


def clipped_total(
    spec: RunSpec,
    round_number: int,
    client_id: str,
    dataset: EmbeddingDataset,
    inputs: Mapping[str, bytes],
    coins: CoinStream,
    *,
    compute: Compute = CPU,
) -> NDArray[np.float64]:
    """The round's sum over clipped units [P], of L2 sensitivity ``sensitivity``. NOT noised.

    Of a training round: the first local step's, of a client that has kept nothing.
    """
    kind = spec.kind(round_number)
    whole = dataset
    dataset = members_of(spec, round_number, client_id, whole, coins)
    if kind in ("sketch", "join"):
        return clipped_sketch(spec, dataset)
    frame = _frame(spec, inputs, client_id)
    if kind == "spread":
        return clipped_spread(spec, dataset, frame)
    if kind == "validate":
        return right_answers(dataset, read_classifiers(spec, inputs["weights"]))
    if kind == "report":
        comparison = Comparison.read(spec, inputs)  # before records are looked at
        return report_sum(comparison, held_out_of(spec, client_id, whole), dataset)
    weights = starting_weights(spec, client_id, frame, inputs)
    return clipped_sum(spec, dataset, frame, weights, client_id, coins, compute=compute)


def noised_update(
    spec: RunSpec,
    round_number: int,
    total: NDArray[np.float64],
    noise: NoiseSource,
    sites: int = 1,
) -> bytes:
    """The update's file: ``total`` [P] of the round's sensitivity, its noise, null coordinates.

    ``sites``: of how many sites ``total`` is the sum.
    """
    update = noised(
        total,
        null_coordinates=NULL_COORDINATES,
        noise_multiplier=spec.event(round_number).noise_multiplier,
        bound=sensitivity(spec, round_number),
        noise=noise,
        grid=release_grid(spec, round_number, sites),
    )
    return packed(spec, round_number, update)


def packed(spec: RunSpec, round_number: int, update: NDArray[np.float32]) -> bytes:
    """The update's file. ``update`` [P + null] carries its noise."""
    layout = layout_of(spec, round_number)
    metadata = {"layout": layout.digest, "spec": spec.digest, "round": str(round_number)}
    return tensors.pack({TENSOR: update}, metadata)


def _frame(spec: RunSpec, inputs: Mapping[str, bytes], client_id: str) -> Frame:
    """The frame, judged whole: whether it is usable must not depend on the records."""
    frame = Frame.from_bytes(inputs["frame"])
    frame.require(spec)
    frame.code(client_id)
    return frame
