"""Names and shapes of everything that is released, as one flat vector. Pure Python and numpy.

An update is one float vector: the blocks of its layout in order, then ``NULL_COORDINATES`` more
coordinates that carry no signal, only the same noise (see ``core.federation.updates``). A training
round's vector is made whole (``train_layout``), then divided: posted, and kept by the client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec, digest_of
from core.models.architecture import architecture_of, group_of
from core.models.candidates import candidates
from core.report.blocks import blocks as report_blocks

NULL_COORDINATES = 256
CODE, ENCODER = "code", "encoder"  # groups: the client's own trained code, the encoder


@dataclass(frozen=True)
class Layout:
    """Ordered blocks ``(name, shape)`` of a flat vector."""

    kind: str
    blocks: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Coordinates that carry signal (P)."""
        return sum(math.prod(shape) for _, shape in self.blocks)

    @property
    def update_length(self) -> int:
        """Coordinates on the wire: P and the null coordinates."""
        return self.size + NULL_COORDINATES

    @property
    def digest(self) -> str:
        return digest_of({"kind": self.kind, "blocks": list(self.blocks), "null": NULL_COORDINATES})

    def split(self, flat: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
        """Views of the blocks of a vector of length P or P + null, by name."""
        if flat.shape not in {(self.size,), (self.update_length,)}:
            raise ValueError(f"{self.kind}: expected {self.size} coordinates, got {flat.shape}")
        views = {}
        start = 0
        for name, shape in self.blocks:
            stop = start + math.prod(shape)
            views[name] = flat[start:stop].reshape(shape)
            start = stop
        return views

    def only(self, keep: Callable[[str], bool]) -> Layout:
        """The layout of those blocks whose group ``keep`` accepts, in the same order."""
        blocks = tuple(block for block in self.blocks if keep(group_of(block[0])))
        return Layout(self.kind, blocks)

    def places(self, part: Layout) -> NDArray[np.int64]:
        """[p] where the coordinates of ``part``, some of these blocks, lie in this vector."""
        views = self.split(np.arange(self.size, dtype=np.float64))
        wanted = [views[name].ravel() for name, _ in part.blocks]
        return np.concatenate([*wanted, np.zeros(0)]).astype(np.int64)

    def join(self, parts: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float64]:
        """The flat vector [P] of named blocks, in float64. Missing or misshapen blocks raise."""
        if set(parts) != {name for name, _ in self.blocks}:
            raise ValueError(f"{self.kind}: blocks {sorted(parts)} do not match the layout")
        for name, shape in self.blocks:
            if parts[name].shape != shape:
                raise ValueError(f"{name}: shape {parts[name].shape}, expected {shape}")
        return np.concatenate(
            [np.asarray(parts[name], dtype=np.float64).ravel() for name, _ in self.blocks]
        )


def sketch_layout(spec: RunSpec) -> Layout:
    """Class counts [C], class sums of directions [C, d] and what else the plan gives weight to:
    vech2 of the second moment in public directions, class sums of random features [C, 2 pairs].
    """
    classes, dim, sketch = len(spec.space.classes), spec.space.dim, spec.plan.sketch
    blocks: list[tuple[str, tuple[int, ...]]] = [("counts", (classes,)), ("sums", (classes, dim))]
    if sketch.projected_weight > 0.0:
        rank = min(sketch.projected_rank, dim)
        blocks.append(("projected", (rank * (rank + 1) // 2,)))
    if sketch.feature_weight > 0.0:
        blocks.append(("features", (classes, 2 * sketch.feature_pairs)))
    return Layout("sketch", tuple(blocks))


def spread_layout(spec: RunSpec) -> Layout:
    """Class sums of residuals [C, d] and vech2 of their second moment, as far as the plan asks.

    vech2: the upper triangle, off-diagonals times sqrt(2). With these weights the vector's L2
    norm is the matrix' Frobenius norm.
    """
    classes, dim, share = len(spec.space.classes), spec.space.dim, spec.plan.privacy.refinement
    blocks: list[tuple[str, tuple[int, ...]]] = []
    if share > 0.0:
        blocks.append(("sums", (classes, dim)))
    if share < 1.0:
        blocks.append(("moments", (dim * (dim + 1) // 2,)))
    return Layout("spread", tuple(blocks))


def residual_rank(spec: RunSpec) -> int:
    """r: how many directions the residual decoder has; never more than the space."""
    return min(spec.plan.model.basis_rank, spec.space.dim)


def train_layout(spec: RunSpec) -> Layout:
    """Every trainable block of the run's architecture: what one unit's gradient is clipped over.

    Linear weights are [out, in].
    """
    return Layout(f"train/{spec.plan.model.form}", architecture_of(spec).blocks)


def posted_layout(spec: RunSpec) -> Layout:
    """The blocks whose noised sum a client posts in a training round."""
    whole = train_layout(spec)
    if spec.plan.model.encoder == "shared":
        return whole
    return whole.only(lambda group: group != ENCODER)


def kept_layout(spec: RunSpec) -> Layout:
    """The blocks whose noised sum a client keeps: those of a local encoder, or none."""
    local = spec.plan.model.encoder == "local"
    return train_layout(spec).only(lambda group: local and group == ENCODER)


def shared_layout(spec: RunSpec) -> Layout:
    """phi: the posted blocks that all clients share; not the client's own code."""
    return posted_layout(spec).only(lambda group: group != CODE)


def report_layout(spec: RunSpec) -> Layout:
    """What a report round releases (``core.report.blocks``)."""
    return Layout("report", report_blocks(spec))


def largest_update(spec: RunSpec) -> tuple[str, int]:
    """(kind of round, coordinates on the wire) of the largest update of a run."""
    layouts = [sketch_layout(spec)]
    if spec.sketch_rounds > 1:
        layouts.append(spread_layout(spec))
    layouts.append(train_layout(spec))
    largest = max(layouts, key=lambda layout: layout.update_length)
    return largest.kind.partition("/")[0], largest.update_length


def layout_of(spec: RunSpec, round_number: int) -> Layout:
    """The layout of one round's updates."""
    match spec.kind(round_number):
        case "sketch" | "join":
            return sketch_layout(spec)
        case "spread":
            return spread_layout(spec)
        case "train":
            return posted_layout(spec)
        case "validate":
            return Layout("validate", (("right", (len(candidates(spec.plan)),)),))
        case "report":
            return report_layout(spec)
