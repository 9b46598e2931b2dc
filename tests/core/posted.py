"""What happens inside a real release: each step's query before noise, and the weights it saw.

``Recorder`` watches a release on D. ``Follower`` runs it on a neighbour D' and answers every
noised sum with that of D, as if noise had made up the difference: the same transcript, so whatever
still differs between the two is something that was not released.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.aggregate import pack_weights
from core.federation.plan import RunSpec
from core.models.architecture import group_of
from core.models.build import build
from core.models.codes import OFFSETS
from core.models.frame import Frame
from core.models.generator import initial_weights
from core.models.layout import shared_layout, sketch_layout, train_layout
from core.privacy.coins import CoinStream
from core.privacy.mechanism import clip_rule
from core.privacy.noise import NoiseSource
from core.training import local_steps
from core.training.local import release
from tests.core import worlds

Vector = NDArray[np.float64]

SLACK = 1 + 1e-6  # over S: the rounding of sums in float64, of which less is left by far


def start(spec: RunSpec) -> tuple[dict[str, bytes], Frame, Vector]:
    """(inputs of the first training round, their frame and weights) for clients a and b."""
    draw = np.random.default_rng(5)
    sketches = [50 * draw.normal(size=sketch_layout(spec).size) for _ in range(2)]
    body = build(spec, sketches, ["a", "b"], ["a", "b"]).to_bytes(spec.digest)
    weights = initial_weights(spec)
    weights = weights + 0.1 * draw.normal(size=weights.size)
    weights = weights.astype(np.float32).astype(np.float64)
    phi, own = weights[train_layout(spec).places(shared_layout(spec))], {}
    if spec.plan.model.codes == "trained":
        own[OFFSETS] = np.zeros((2, spec.plan.model.code_dim), np.float32)
    inputs = {"frame": body, "weights": pack_weights(spec, 0, phi, phi, **own)}
    return inputs, Frame.from_bytes(body), weights


def update_of(
    spec: RunSpec, number: int, data: EmbeddingDataset, inputs: dict[str, bytes], noise: NoiseSource
) -> bytes:
    """Client a's real update."""
    return release(spec, number, 1, "a", data, inputs, secret=worlds.SECRET, noise=noise).update


@dataclass(frozen=True, eq=False)
class Step:
    """One query: where it was asked, with which coins, its answer before and after noise."""

    weights: Vector
    coins: CoinStream
    total: Vector
    noised: NDArray[np.float32]


class Recorder:
    """In its ``with`` block, remembers every query.

    ``bare``: places of the vector whose sums the site goes on with as they are, without noise: the
    defect.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bare: NDArray[np.int64] | None = None):
        self.steps: list[Step] = []
        self._patch = monkeypatch
        self._bare = np.zeros(0, np.int64) if bare is None else bare
        self._context: Any = None

    def __enter__(self) -> Self:
        real_sum, real_noised = local_steps.clipped_sum, local_steps.noised
        seen: list[tuple[Vector, CoinStream]] = []

        def clipped_sum(
            spec: RunSpec, dataset: EmbeddingDataset, frame: Frame, weights: Vector, *rest: Any,
            **named: Any,
        ) -> Vector:  # fmt: skip
            seen.append((np.array(weights), rest[1]))
            return real_sum(spec, dataset, frame, weights, *rest, **named)

        def noised(total: Vector, **named: Any) -> NDArray[np.float32]:
            released = np.array(self.answer(real_noised(total, **named)))
            released[self._bare] = total[self._bare]
            self.steps.append(Step(*seen[-1], np.array(total), released))
            return released

        self._context = self._patch.context()
        inner = self._context.__enter__()
        inner.setattr(local_steps, "clipped_sum", clipped_sum)
        inner.setattr(local_steps, "noised", noised)
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    def answer(self, released: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the site takes for the noised sum."""
        return released


class Follower(Recorder):
    """Answers with the noised sums of another recording (but for what is ``bare``)."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        leader: Recorder,
        bare: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(monkeypatch, bare)
        self._leader = leader

    def answer(self, released: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._leader.steps[len(self.steps)].noised


def clip_norms_moved(spec: RunSpec, difference: Vector) -> float:
    """How far the parts of a difference [P] of sums are from 0, each in its own clip norm: of the
    part that is furthest. A part may stay within S where it is beyond its clip norm.
    """
    rule = clip_rule(spec.plan.privacy)
    blocks = train_layout(spec).split(difference)
    squares: dict[str, float] = {}
    for name, values in blocks.items():
        part = rule.part(group_of(name))
        squares[part] = squares.get(part, 0.0) + float(np.sum(np.square(values)))
    return max(
        0.0 if square == 0.0 else math.sqrt(square) / rule.norm_of(part)
        for part, square in squares.items()
    )


def moved_between(ours: Recorder, theirs: Recorder) -> list[float]:
    """By how much each query before noise differs between two recordings."""
    pairs = zip(ours.steps, theirs.steps, strict=True)
    return [float(np.linalg.norm(a.total - b.total)) for a, b in pairs]


def parts_moved_between(spec: RunSpec, ours: Recorder, theirs: Recorder) -> list[float]:
    """The same of the part that moved furthest, in its own clip norm."""
    pairs = zip(ours.steps, theirs.steps, strict=True)
    return [clip_norms_moved(spec, a.total - b.total) for a, b in pairs]
