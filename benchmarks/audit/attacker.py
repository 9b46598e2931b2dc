"""Whoever has seen all that a site sent, and knows every record but not which canaries are in.

What the attacker holds: the specification, the frame and weights of every round, every noised
update of the site, all canaries and all other records. What stays secret: the canaries' coins, the
noise, and the site's stream of coins and latent draws.

A round's release is data + sum over included canaries of a_i + N(0, std^2 I), where a_i is what
canary i adds under the inputs of that round; std is estimated from the update's null coordinates.
The attacker computes all a_i with the production queries (in training rounds: expected over
inclusion, code and latent draws, by secrets of its own), and updates a Gaussian belief about the
coins, round by round, by the linear estimate with the least squared error. With orthogonal a_i that
is their log-likelihood ratio, a_i . release / std^2 summed over rounds; where they overlap, it
takes the others' uncertainty into account.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, lsqr

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.federation.updates import expectation, read_update
from core.models.frame import Frame
from core.models.layout import layout_of
from core.privacy.coins import CoinStream
from core.training.compute import CPU
from core.training.gradients import Batch
from core.training.local import clipped_total
from core.training.spread import clipped_spread
from core.wire import tensors

Vector = NDArray[np.float64]
Rows = NDArray[np.float32] | sparse.csr_array
Inputs = Mapping[str, bytes]

_DRAWS = 2  # secrets of the attacker's own that expected contributions are averaged over
_SPARSE = 0.2  # share of coordinates that a canary touches, below which rows are kept sparse
_ITERATIONS = 60  # of the solver; contributions hardly overlap, so it needs few


@dataclass(frozen=True, eq=False)
class Belief:
    """Mean [m] and variance [m] of every coin, taken as independent; 1 is "in"."""

    mean: Vector
    variance: Vector

    @classmethod
    def prior(cls, canaries: int) -> Belief:
        """Of fair coins."""
        return cls(np.full(canaries, 0.5), np.full(canaries, 0.25))

    def updated(self, rows: Rows, observed: Vector, std: float) -> Belief:
        """After ``observed`` [P] = sum of the included of ``rows`` [m, P] + N(0, std^2)."""
        scale = np.sqrt(self.variance) / std

        def forward(u: Vector) -> Vector:
            return np.asarray(rows.T @ (scale * u), np.float64)

        def back(seen: Vector) -> Vector:
            return np.asarray(scale * (rows @ seen), np.float64)

        operator = LinearOperator(
            rows.shape[::-1], matvec=forward, rmatvec=back, dtype=np.dtype(np.float64)
        )
        rest = (observed - rows.T @ self.mean) / std
        found = lsqr(operator, rest, damp=1.0, iter_lim=_ITERATIONS)[0]
        squares = np.asarray((rows * rows).sum(axis=1), np.float64).ravel()
        return Belief(
            self.mean + np.sqrt(self.variance) * np.asarray(found, np.float64),
            1.0 / (1.0 / self.variance + squares / std**2),
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """One round as it is seen: its number, what was published before it, the site's update."""

    number: int
    inputs: Inputs
    update: bytes


def attack(
    spec: RunSpec,
    client: str,
    transcript: Sequence[Seen],
    canaries: EmbeddingDataset,
    known: EmbeddingDataset,
) -> Vector:
    """[m] the attacker's belief that each canary is in, after the rounds of ``transcript``.

    ``known`` are the site's other records.
    """
    belief = Belief.prior(len(canaries))
    for seen in transcript:
        expected = expectation(spec, seen.number)
        update = read_update(seen.update, expected).astype(np.float64)
        # Whatever was promised: the null coordinates carry the round's noise and nothing else.
        std = float(np.sqrt(np.mean(update[expected.size :] ** 2)))
        rest = contributions(spec, seen, client, known, summed=True)
        rows = contributions(spec, seen, client, canaries)
        belief = belief.updated(rows, update[: expected.size] - np.asarray(rest).ravel(), std)
    return belief.mean


def contributions(
    spec: RunSpec,
    seen: Seen,
    client: str,
    records: EmbeddingDataset,
    *,
    summed: bool = False,
    streams: Sequence[CoinStream] | None = None,
) -> Rows:
    """[units, P] what each unit is expected to add to a round, in the order of the records.

    Every record must be a unit of its own. ``summed``: one row, the sum.
    ``streams``: of coins to average over; the attacker's own by default.
    """
    streams = streams or [_stream(spec, seen.number, draw) for draw in range(_DRAWS)]
    kind = spec.kind(seen.number)
    if kind == "train":
        return _gradients(spec, seen, client, records, streams, summed=summed)

    # Of a kind that is asked of thousands of single records, the frame is read once.
    frame = Frame.from_bytes(seen.inputs["frame"]) if kind == "spread" else None

    def total(some: EmbeddingDataset, coins: CoinStream) -> Vector:
        if frame is not None:
            return clipped_spread(spec, some, frame)
        return clipped_total(spec, seen.number, client, some, seen.inputs, coins)

    # Where no coin is flipped one draw is all that there is to know.
    whole = [total(records, coins) for coins in streams]
    if all(np.array_equal(whole[0], other) for other in whole[1:]):
        streams, whole = streams[:1], whole[:1]
    if summed:
        return np.asarray(np.mean(whole, axis=0)[None], np.float32)

    def expected(one: EmbeddingDataset) -> Vector:
        return np.asarray(np.mean([total(one, coins) for coins in streams], axis=0))

    return _stacked((expected(_one(records, i)) for i in range(len(records))), whole[0].size)


def _one(records: EmbeddingDataset, row: int) -> EmbeddingDataset:
    some = slice(row, row + 1)
    return EmbeddingDataset.from_arrays(records.x[some], records.y[some], records.unit[some])


def _stacked(vectors: Iterator[Vector], size: int) -> Rows:
    """Rows of [P] each, kept sparse if they are."""
    places, values, ends = [], [], [0]
    for vector in vectors:
        place = np.flatnonzero(vector)
        places.append(place.astype(np.int32))
        values.append(vector[place].astype(np.float32))
        ends.append(ends[-1] + len(place))
    shape = (len(places), size)
    rows = sparse.csr_array(
        (np.concatenate(values), np.concatenate(places), np.array(ends)), shape=shape
    )
    return rows if ends[-1] < _SPARSE * len(places) * size else rows.toarray()


def _gradients(
    spec: RunSpec,
    seen: Seen,
    client: str,
    records: EmbeddingDataset,
    streams: Sequence[CoinStream],
    *,
    summed: bool,
) -> NDArray[np.float32]:
    """Sample rate times the clipped gradient, averaged over code coins and latent draws."""
    from core.training.reference import clipped_units  # torch takes seconds to import

    privacy = spec.plan.privacy
    plan = spec.plan.model_copy(update={"privacy": privacy.model_copy(update={"sample_rate": 1.0})})
    everybody = spec.model_copy(update={"plan": plan})  # the same round, with all in the batch
    frame = Frame.from_bytes(seen.inputs["frame"])
    phi = np.asarray(tensors.unpack(seen.inputs["weights"])[0]["phi"], np.float64)
    place = {unit: row for row, unit in enumerate(records.unit)}
    rows_of = np.array([place[unit] for unit in records.unit_ids], np.int64)
    size = layout_of(spec, seen.number).size
    found = np.zeros((1 if summed else len(records), size), np.float32)
    weight = privacy.sample_rate / len(streams)
    for coins in streams:
        batch = Batch.draw(everybody, records, frame, client, coins)
        for units, gradients in clipped_units(batch, phi, CPU):
            if summed:
                found[0] += (weight * gradients.sum(axis=0)).astype(np.float32)
            else:
                found[rows_of[units]] += (weight * gradients).astype(np.float32)
    return found


def _stream(spec: RunSpec, number: int, draw: int) -> CoinStream:
    """Coins under a secret that is the attacker's, hence nothing that the site uses."""
    secret = hashlib.sha256(b"attacker" + draw.to_bytes(4, "little")).digest()
    return CoinStream(secret, spec.run_id, number, 1)
