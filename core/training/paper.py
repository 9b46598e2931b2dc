"""The mode ``paper``: one site's part, for comparison only. NO RECORD-LEVEL GUARANTEE.

The obvious reading of the FedHypeVAE abstract (arXiv 2601.00785): a client's code and encoder are
its private state, trained on its own records WITHOUT noise; of the blocks that clients share
(trunk, heads, prior, conditioning, decoder) the clipped sum of per-unit gradients is noised and
posted. The local optimiser and all sizes are this project's own choices.

Why there is no guarantee: each unit adds at most S to the posted sum GIVEN the private state. But
the state depends on every record. Remove one unit and the state moves, with it the gradient of
EVERY other unit: n units may together move the sum by up to 2 n S. Noise for S covers none of it.
This is trap 1 of docs/privacy.md; what is done about it is ``core.training.gradients`` and
``core.training.kept``. Sites and coordinators refuse this mode; nothing here is reached from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.federation.plan import RunSpec
from core.models.architecture import architecture_of
from core.models.codes import TRAINED
from core.models.frame import Frame
from core.models.generator import initial_weights
from core.models.grouped import Grouped, Span, generate, trunk_outputs
from core.models.layout import CODE, ENCODER, kept_layout, shared_layout, train_layout
from core.models.losses import Records, record_losses
from core.privacy.clipping import ClipRule
from core.privacy.coins import CoinStream
from core.privacy.mechanism import clip_rule
from core.training.compute import CPU, Compute
from core.training.fast import ghost_sum
from core.training.gradients import Batch

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class LocalTraining:
    """What a client does to its private state in each round: full-batch steps of Adam."""

    steps: int = 5
    learning_rate: float = 0.01


@dataclass(frozen=True, eq=False)
class PrivateState:
    """What a client holds without noise: ``offset`` [c] of its code from the sketch's, ``encoder``
    [K of ``kept_layout``]. A function of its raw records.
    """

    offset: Vector
    encoder: Vector

    @classmethod
    def start(cls, spec: RunSpec) -> PrivateState:
        """Before any record was seen."""
        encoder = initial_weights(spec)[train_layout(spec).places(kept_layout(spec))]
        return cls(np.zeros(spec.plan.model.code_dim), encoder)


def shared_rule(spec: RunSpec) -> ClipRule:
    """The plan's rule over the shared blocks alone: code and encoder add nothing."""
    rule = clip_rule(spec.plan.privacy)
    return replace(rule, blocks={**rule.blocks, ENCODER: 0.0, CODE: 0.0})


def shared_bound(spec: RunSpec) -> float:
    """S: what one unit adds at most to the posted sum, GIVEN the private state.

    It is not the sensitivity of the posted sum, which has no bound better than that of all units.
    """
    return shared_rule(spec).sensitivity(architecture_of(spec).groups)


def trained_state(
    batch: Batch, phi: Vector, state: PrivateState, training: LocalTraining
) -> PrivateState:
    """The state after plain gradient steps on the mean loss of the batch. NOT noised.

    ``phi`` [P of ``shared_layout``] is held. A state that would not be finite is not taken.
    """
    if len(batch.rows) == 0:
        return state
    spec = batch.spec
    network = architecture_of(spec)
    records, spans = _sorted_by_code(batch)
    offset = torch.tensor(state.offset, requires_grad=True)
    encoder = {
        name: torch.tensor(part, requires_grad=True)
        for name, part in kept_layout(spec).split(state.encoder).items()
    }
    shared = {name: torch.tensor(part) for name, part in shared_layout(spec).split(phi).items()}
    weights = shared | encoder
    sketched = torch.from_numpy(batch.own)
    adam = torch.optim.Adam([offset, *encoder.values()], lr=training.learning_rate)
    for _ in range(training.steps):
        codes = torch.stack([sketched + offset, torch.zeros_like(sketched)])
        generated = generate(network, weights, trunk_outputs(network, weights, codes)[-1])
        adam.zero_grad()
        layers = Grouped(network, weights, generated, spans)
        record_losses(network, layers, records).mean().backward()  # type: ignore[no-untyped-call]
        adam.step()
    found = PrivateState(
        offset.detach().numpy(),
        kept_layout(spec).join({name: part.detach().numpy() for name, part in encoder.items()}),
    )
    usable = np.isfinite(found.offset).all() and np.isfinite(found.encoder).all()
    return found if usable else state


def _sorted_by_code(batch: Batch) -> tuple[Records, list[Span]]:
    """The batch's records in float64, those under the client's code first; and their spans."""
    order = np.argsort(batch.code_of, kind="stable")
    residual, labels, draws = map(torch.from_numpy, batch.inputs(order))
    own = int((batch.code_of == 0).sum())
    spans = [Span(0, 0, own), Span(1, own, len(order))]
    return Records(residual, labels, draws), [span for span in spans if span.first < span.end]


def site_round(
    spec: RunSpec,
    dataset: EmbeddingDataset,
    frame: Frame,
    phi: Vector,
    client_id: str,
    state: PrivateState,
    coins: CoinStream,
    training: LocalTraining,
    compute: Compute = CPU,
) -> tuple[PrivateState, Vector]:
    """(state after local training, clipped sum [P of ``shared_layout``] under it). NOT noised.

    Local training is on all valid records, the sum over the round's Poisson sample.
    Sensitivity for adding or removing one unit: unbounded by S, see the top of this file.
    """
    batch = Batch.draw(spec, dataset, frame, client_id, coins)
    everybody = replace(batch, rows=np.flatnonzero(dataset.valid))
    state = trained_state(everybody, phi, state, training)
    whole, shared = train_layout(spec), shared_layout(spec)
    parts = shared.split(phi) | kept_layout(spec).split(state.encoder)
    parts[TRAINED] = (batch.own + state.offset)[:, None]
    total = ghost_sum(batch, whole.join(parts), compute, shared_rule(spec))
    return state, total[whole.places(shared)]
