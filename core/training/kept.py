"""What a client keeps of its training rounds: the encoder of its own, from noised sums only.

A unit's gradient over ALL blocks, those of the encoder among them, is clipped once; noise goes on
all coordinates. Then the noised vector is divided: the shared blocks are posted, the encoder's part
stays at the site and moves the client's encoder by the server's optimiser over q times its
released noised units. Keeping a part of a release un-posted costs nothing and saves nothing: the
round's one event covers the whole vector, so whatever later rounds say about the encoder is
post-processing of what was paid for. An encoder trained without noise would make every other
record's clipped gradient depend on the protected one (trap 1 of docs/privacy.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.federation.optimiser import server_step
from core.federation.plan import RunSpec
from core.models.generator import initial_weights
from core.models.layout import kept_layout, posted_layout, train_layout
from core.wire import tensors

Vector = NDArray[np.float64]
_LARGEST = 1e30  # finite in float32, whatever denominators a coordinator thinks of
_VECTORS = ("weights", "first", "second")


@dataclass(frozen=True, eq=False)
class Kept:
    """A client's encoder after its accepted rounds: ``weights`` [K of ``kept_layout``], the
    optimiser's moments ``first``, ``second`` [K], and ``steps``, how many rounds that were.
    """

    weights: Vector
    first: Vector
    second: Vector
    steps: int

    @classmethod
    def start(cls, spec: RunSpec) -> Kept:
        """The public initial encoder."""
        weights = initial_weights(spec)[train_layout(spec).places(kept_layout(spec))]
        zeros = np.zeros(weights.size)
        return cls(weights, zeros, zeros, 0)

    @classmethod
    def read(
        cls, spec: RunSpec, round_number: int, client_id: str, body: bytes | None
    ) -> Kept | None:
        """From a blob of ``to_bytes``, or the start; None where the encoder is shared.

        Raises ``TensorFileError`` for a blob of another run, client or later round, or a damaged
        one: before any record is used.
        """
        if spec.plan.model.encoder == "shared":
            return None
        if body is None:
            return cls.start(spec)
        content, metadata = tensors.unpack(body)
        wanted = _metadata(spec, client_id)
        if {name: metadata.get(name) for name in wanted} != wanted:
            raise tensors.TensorFileError("what was kept belongs to another run or client")
        shape = (kept_layout(spec).size,)
        vectors = [np.asarray(content.get(name, np.zeros(0)), np.float64) for name in _VECTORS]
        if any(part.shape != shape or not np.isfinite(part).all() for part in vectors):
            raise tensors.TensorFileError(f"what was kept is not finite or not {shape}")
        steps, number = int(metadata.get("steps", "-1")), int(metadata.get("round", "-1"))
        if steps < 1 or not spec.sketch_rounds <= number < round_number:
            raise tensors.TensorFileError("what was kept is not of an earlier training round")
        weights, first, second = vectors
        return cls(weights, first, second, steps)

    def to_bytes(self, spec: RunSpec, round_number: int, client_id: str) -> bytes:
        """The blob that the next round begins with, once this round's update was accepted."""
        content = {name: getattr(self, name) for name in _VECTORS}
        numbers = {"steps": str(self.steps), "round": str(round_number)}
        return tensors.pack(content, _metadata(spec, client_id) | numbers)

    def after(self, spec: RunSpec, batch: float, sums: NDArray[np.float32]) -> Kept:
        """One round on. ``sums`` [P + null] noised, of all blocks; ``batch`` q times the client's
        released noised units.
        """
        mine = sums[train_layout(spec).places(kept_layout(spec))].astype(np.float64)
        gradient = np.clip(mine / (batch * spec.plan.privacy.local_steps), -_LARGEST, _LARGEST)
        weights, first, second = server_step(
            spec, self.steps + 1, self.weights, gradient, self.first, self.second
        )
        return Kept(np.clip(weights, -_LARGEST, _LARGEST), first, second, self.steps + 1)


def posted_part(spec: RunSpec, sums: NDArray[np.float32]) -> NDArray[np.float32]:
    """[posted + null] what leaves the site of noised sums [P + null] over all blocks."""
    whole = train_layout(spec)
    return np.concatenate([sums[whole.places(posted_layout(spec))], sums[whole.size :]])


def _metadata(spec: RunSpec, client_id: str) -> dict[str, str]:
    return {
        "kind": "kept",
        "layout": kept_layout(spec).digest,
        "spec": spec.digest,
        "client": client_id,
    }
