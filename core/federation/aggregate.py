"""A round's accepted updates become the next model. Pure functions of stored bytes, in numpy.

Updates are read one at a time, in the fixed order of the job, into one float64 sum: memory is
O(P) whatever the number of clients, and a replay of the round gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.federation.updates import expectation, read_update
from core.models.build import build
from core.models.evidence import from_sketches
from core.models.frame import Frame
from core.models.generator import initial_weights
from core.models.joining import join
from core.models.layout import train_layout
from core.models.spread import with_spread
from core.wire import tensors
from core.wire.messages import AggregateJob

Vector = NDArray[np.float64]
_ADAM_BETAS = (0.9, 0.99)  # few rounds: the usual 0.999 would not warm up
_ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class Aggregated:
    """The files of a published round."""

    frame: bytes
    weights: bytes
    optimiser: bytes


def aggregate(job: AggregateJob, read: Callable[[str], bytes]) -> Aggregated:
    """The next model from a round's updates; ``read`` gives a stored object's bytes by digest.

    Raises an ``UpdateRejected`` if a stored update is not what was accepted, ``ValueError`` if
    the job names no update or lacks the previous model.
    """
    if not job.updates:
        raise ValueError("a round without updates cannot be aggregated")
    match job.spec.kind(job.round_number):
        case "sketch":
            return _sketch_round(job, read)
        case "spread":
            return _spread_round(job, read)
        case "train":
            return _train_round(job, read)
        case "join":
            return _join_round(job, read)


def _released(job: AggregateJob, read: Callable[[str], bytes]) -> list[Vector]:
    """The released vectors [P] of a round, in its order."""
    expected = expectation(job.spec, job.round_number)
    return [
        np.asarray(read_update(read(update.digest), expected)[: expected.size], np.float64)
        for update in job.updates
    ]


def _sketch_round(job: AggregateJob, read: Callable[[str], bytes]) -> Aggregated:
    spec = job.spec
    sketches = _released(job, read)
    frame = build(
        spec, sketches, [u.client_id for u in job.updates], [u.client for u in job.updates]
    )
    phi = initial_weights(spec)
    zeros = np.zeros(phi.size)
    kept = {}
    if spec.sketch_rounds > 1:  # the second step's estimates combine both releases
        kept["sketches"] = np.asarray(sketches, np.float32)  # as they came: nothing is rounded
    return Aggregated(
        frame=frame.to_bytes(spec.digest),
        weights=pack_weights(spec, 0, phi, phi),
        optimiser=_pack_optimiser(spec, 0, phi, zeros, zeros, **kept),
    )


def _spread_round(job: AggregateJob, read: Callable[[str], bytes]) -> Aggregated:
    spec = job.spec
    frame_body, weights, optimiser = _previous(job, read)
    state, _ = tensors.unpack(optimiser)
    evidence = from_sketches(spec, list(np.asarray(state["sketches"], np.float64)))
    clients = [update.client_id for update in job.updates]
    frame = with_spread(spec, Frame.from_bytes(frame_body), evidence, _released(job, read), clients)
    phi = np.asarray(tensors.unpack(weights)[0]["phi"], np.float64)
    zeros = np.zeros(phi.size)
    return Aggregated(
        frame=frame.to_bytes(spec.digest),
        weights=pack_weights(spec, job.round_number, phi, phi),
        optimiser=_pack_optimiser(spec, job.round_number, phi, zeros, zeros),
    )


def _join_round(job: AggregateJob, read: Callable[[str], bytes]) -> Aggregated:
    """A frame with more clients; nobody trains, so the other files stay byte for byte."""
    frame_body, weights, optimiser = _previous(job, read)
    frame = join(
        job.spec,
        Frame.from_bytes(frame_body),
        _released(job, read),
        [update.client_id for update in job.updates],
        [update.client for update in job.updates],
    )
    return Aggregated(frame.to_bytes(job.spec.digest), weights, optimiser)


def _previous(job: AggregateJob, read: Callable[[str], bytes]) -> tuple[bytes, bytes, bytes]:
    """Frame, weights and optimiser state of the model before this round."""
    if job.frame is None or job.weights is None or job.optimiser is None:
        raise ValueError("this round needs the previous frame, weights and optimiser state")
    return read(job.frame), read(job.weights), read(job.optimiser)


def _train_round(job: AggregateJob, read: Callable[[str], bytes]) -> Aggregated:
    spec = job.spec
    frame_body, weights_body, optimiser_body = _previous(job, read)
    frame = Frame.from_bytes(frame_body)
    expected = expectation(spec, job.round_number)
    total = np.zeros(expected.size)
    units = 0.0
    for update in job.updates:
        total += read_update(read(update.digest), expected)[: expected.size]
        units += float(frame.sizes[frame.client_ids.index(update.client_id)])
    # The expected batch is public post-processing: q and noised counts, never the batch itself.
    gradient = total / (spec.plan.privacy.sample_rate * units)
    previous, _ = tensors.unpack(weights_body)
    state, _ = tensors.unpack(optimiser_body)
    if spec.plan.regulariser.active:
        from core.training.free_terms import free_gradient  # torch: slow to import, seldom needed

        at = np.asarray(state["phi"], np.float64)
        gradient = gradient + free_gradient(spec, frame, at, job.round_number)
    step = job.round_number - spec.sketch_rounds + 1
    phi, first, second = server_step(
        spec,
        step,
        np.asarray(state["phi"], np.float64),
        gradient,
        np.asarray(state["first"], np.float64),
        np.asarray(state["second"], np.float64),
    )
    decay = min(spec.plan.optimiser.ema_decay, step / (step + 1.0))
    average = decay * np.asarray(previous["average"], np.float64) + (1.0 - decay) * phi
    return Aggregated(
        frame=frame_body,
        weights=pack_weights(spec, job.round_number, phi, average),
        optimiser=_pack_optimiser(spec, job.round_number, phi, first, second),
    )


def server_step(
    spec: RunSpec, step: int, phi: Vector, gradient: Vector, first: Vector, second: Vector
) -> tuple[Vector, Vector, Vector]:
    """One step of the server's optimiser (Adam, Kingma and Ba 2015; or heavy-ball momentum).

    All vectors [P] in float64; ``step`` counts from 1. Returns (phi, first, second moments).
    """
    plan = spec.plan.optimiser
    if plan.kind == "momentum":
        first = plan.momentum * first + gradient
        return phi - plan.learning_rate * first, first, second
    beta1, beta2 = _ADAM_BETAS
    first = beta1 * first + (1.0 - beta1) * gradient
    second = beta2 * second + (1.0 - beta2) * gradient**2
    corrected = first / (1.0 - beta1**step)
    scale = np.sqrt(second / (1.0 - beta2**step)) + _ADAM_EPSILON
    return phi - plan.learning_rate * corrected / scale, first, second


def pack_weights(spec: RunSpec, round_number: int, phi: Vector, average: Vector) -> bytes:
    """The weights file: the iterate (for training) and its running average (for sampling).

    float32, because every client downloads it each round; the server keeps phi in float64.
    """
    return tensors.pack(
        {"phi": phi.astype(np.float32), "average": average.astype(np.float32)},
        {
            "kind": "weights",
            "layout": train_layout(spec).digest,
            "spec": spec.digest,
            "round": str(round_number),
        },
    )


def _pack_optimiser(
    spec: RunSpec,
    round_number: int,
    phi: Vector,
    first: Vector,
    second: Vector,
    **kept: NDArray[np.float32],
) -> bytes:
    """The server's own state; ``kept`` are releases that the next round needs again."""
    metadata = {"kind": "optimiser", "spec": spec.digest, "round": str(round_number)}
    return tensors.pack({"phi": phi, "first": first, "second": second, **kept}, metadata)
