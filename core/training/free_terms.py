"""The server's free terms: gradients with respect to phi that need no record and cost no privacy.

Formal guarantee
----------------
``free_gradient`` is a function of the plan, the frame, the iterate and the round's number: all of
them public or released by the mechanism. It is post-processing, so adding or removing a unit moves
it only through releases that are already paid for; it has no sensitivity of its own. What would
break this is a target that was not released, such as the means of a site's raw batch (trap 3 of
docs/privacy.md: ``test_defect_mmd_against_the_raw_batch``).

The same arguments give the same bytes: draws come from the run's public stream, arithmetic is
float64 in one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.federation.plan import RunSpec
from core.models.architecture import Architecture, architecture_of
from core.models.frame import Frame
from core.models.grouped import generate, trunk_outputs
from core.models.layout import shared_layout
from core.models.public import Purpose, stream
from core.training.free_mmd import add_mmd_gradient

Vector = NDArray[np.float64]
Weights = dict[str, Tensor]

_PAIRS = 64  # of codes, of each of two kinds, in one round
_SAME = 1e-9  # codes no further apart than this are one point
_LEAST_SQUARE = 1e-30  # a root has no slope at 0


def free_gradient(spec: RunSpec, frame: Frame, phi: Vector, round_number: int) -> Vector:
    """[P] gradient at phi [P] of the plan's free terms, each times its weight.

    Add it to the mean gradient of the round's units. Zero for blocks that no term touches, and
    altogether where a weighted sum is not finite: an iterate that noise blew up is left to the
    other gradient. Raises ``ValueError`` if phi is not of the run's layout, or if the frame has no
    targets for an MMD that the plan asks for.
    """
    plan, layout = spec.plan.regulariser, shared_layout(spec)
    parts = layout.split(phi)
    with _one_thread():
        weights = {
            name: torch.from_numpy(np.array(part, np.float64)).requires_grad_(True)
            for name, part in parts.items()
        }
        if plan.mmd_weight > 0.0:
            draw = stream(spec, Purpose.MMD, round_number)
            add_mmd_gradient(spec, frame, weights, draw, plan.mmd_weight)
        if plan.lipschitz_weight > 0.0:
            pairs = code_pairs(frame.codes, stream(spec, Purpose.LIPSCHITZ, round_number))
            excess = lipschitz_excess(architecture_of(spec), weights, pairs, plan.lipschitz_limit)
            (plan.lipschitz_weight * excess).backward()  # type: ignore[no-untyped-call]
    gradient = layout.join(
        {
            name: np.zeros(value.shape) if value.grad is None else value.grad.numpy()
            for name, value in weights.items()
        }
    )
    return gradient if np.isfinite(gradient).all() else np.zeros_like(gradient)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine has: threads would split them elsewhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def code_pairs(codes: Vector, draw: np.random.Generator) -> Vector:
    """[n, 2, c] pairs of distinct points at which the hypernetwork is held smooth; n may be 0.

    From released codes [M, c] and the neutral one: pairs of these points, and pairs half a line
    apart on the public random line between two of them, where mixtures lie.
    """
    points = np.concatenate([np.zeros((1, codes.shape[1])), codes])
    first, second = draw.integers(0, len(points), (2, 2 * _PAIRS))
    ends = np.stack([points[first], points[second]], axis=1)
    start = draw.uniform(0.0, 0.5, (_PAIRS, 1))
    step = ends[_PAIRS:, 1] - ends[_PAIRS:, 0]
    inner = ends[_PAIRS:, 0] + start * step
    between = np.stack([inner, inner + 0.5 * step], axis=1)
    pairs = np.concatenate([ends[:_PAIRS], between])
    apart = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1) > _SAME
    return np.asarray(pairs[apart])


def lipschitz_ratios(network: Architecture, weights: Weights, pairs: Vector) -> Tensor:
    """[n] |h(v) - h(v')| / |v - v'| for pairs [n, 2, c] of distinct codes.

    h(v): all that the heads generate, for decoder and prior, as one vector. What decoders share
    cancels in the difference; for ``lowrank`` these are the two factors, not their product.
    """
    codes = torch.from_numpy(np.asarray(pairs, np.float64))
    outputs = trunk_outputs(network, weights, codes.flatten(0, 1))[-1]
    made = generate(network, weights, outputs)
    vectors = torch.cat([value.flatten(1) for value in made.values()], dim=1)
    vectors = vectors.view(len(pairs), 2, -1)
    moved = (vectors[:, 0] - vectors[:, 1]).square().sum(1).clamp_min(_LEAST_SQUARE).sqrt()
    return moved / (codes[:, 0] - codes[:, 1]).square().sum(1).sqrt()


def lipschitz_excess(
    network: Architecture, weights: Weights, pairs: Vector, limit: float
) -> Tensor:
    """Mean over pairs of max(0, ratio - limit)^2: exactly 0 where every ratio keeps the limit."""
    if len(pairs) == 0:  # one client, whose code is the neutral one
        return 0.0 * weights["trunk.0.weight"].sum()
    ratios = lipschitz_ratios(network, weights, pairs)
    return torch.relu(ratios - limit).square().mean()
