"""A run in the mode ``paper``, in one process, for comparison only. NO RECORD-LEVEL GUARANTEE.

The sketch rounds are those of a joint run: released with noise, so the frame is the same. In the
training rounds each site trains its code and its encoder without noise, then posts the noised
clipped sum of the shared blocks (``core.training.paper`` says why that protects no record); the
server moves them as in a joint run. Noise is as large as the plan's targets ask of a joint run, so
that the comparison is fair; that makes the targets no statement about this run.

What comes out holds the clients' private codes. ``PaperRun`` has no events on purpose: nobody can
compute an epsilon from it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.federation.aggregate import pack_weights
from core.federation.plan import NO_GUARANTEE, RunSpec
from core.federation.rule import NoiseMode
from core.federation.server import Gradient, advance, average_decay, starting_state
from core.models.codes import AVERAGE, OFFSETS
from core.models.frame import Frame
from core.privacy.coins import CoinStream
from core.privacy.mechanism import noised
from core.privacy.noise import NoiseSource
from core.simulation import SimulatedSite, simulate
from core.synthesis.sampler import Generator
from core.training.compute import CPU, Compute
from core.training.free_terms import free_gradient
from core.training.paper import LocalTraining, PrivateState, shared_bound, site_round

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PaperRun:
    """``frame`` and ``weights`` files, the ``generator`` that reads them, each client's private
    ``states``. Not private: the weights file holds un-noised codes.
    """

    frame: bytes
    weights: bytes
    generator: Generator
    states: dict[str, PrivateState]
    private: bool = False
    caveat: str = NO_GUARANTEE

    @property
    def epsilon(self) -> float:
        """Infinite, whatever the plan's target was."""
        return math.inf


def simulate_paper(
    spec: RunSpec,
    sites: Sequence[SimulatedSite],
    *,
    noise: NoiseSource,
    secret: bytes | None = None,
    training: LocalTraining | None = None,
    compute: Compute = CPU,
    noise_mode: NoiseMode = "local",
    observe: Callable[[int, dict[str, Vector]], None] | None = None,
) -> PaperRun:
    """Run a plan of the mode ``paper`` over ``sites``.

    ``secret`` (32 bytes or more) seeds coins. ``noise_mode`` as in ``core.simulation``; with
    "aggregated" there are no sketches of single sites and codes begin at 0. ``observe`` is called
    with each training round's number and the sites' clipped sums [P], before noise.
    Raises ``ValueError`` for a plan of another mode or purpose.
    """
    privacy, multiplier = spec.plan.privacy, spec.noise.train_multiplier
    if privacy.mode != "paper" or spec.plan.purpose != "simulation" or multiplier is None:
        raise ValueError("simulate_paper runs simulations of privacy.mode 'paper' only")
    key = secret if secret is not None else os.urandom(32)
    frame = _sketched(spec, sites, noise, key, noise_mode)
    how = training or LocalTraining()
    states = {site.name: PrivateState.start(spec) for site in sites}
    average = np.zeros(frame.codes.shape)  # of offsets, as samplers use them
    server = starting_state(spec, frame)
    bound = shared_bound(spec)
    batch = privacy.sample_rate * float(frame.sizes.sum())
    draws = len(sites) if noise_mode == "local" else 1
    noise_std = multiplier * bound * math.sqrt(draws) / batch

    def released(total: Vector) -> Vector:
        made = noised(
            total, null_coordinates=0, noise_multiplier=multiplier, bound=bound, noise=noise
        )
        return made.astype(np.float64)

    for number in range(spec.sketch_rounds, spec.last_training_round + 1):
        totals = {}
        for site in sites:
            coins = CoinStream(key + site.name.encode(), spec.run_id, number, 1)
            states[site.name], totals[site.name] = site_round(
                spec, site.data, frame, server.phi, site.name, states[site.name], coins, how,
                compute,
            )  # fmt: skip
        if observe is not None:
            observe(number, totals)
        each = list(totals.values())
        posted = each if noise_mode == "local" else [np.sum(each, axis=0)]
        mean = np.sum([released(total) for total in posted], axis=0) / batch
        if spec.plan.regulariser.active:  # as in a joint run
            mean = mean + free_gradient(spec, frame, server.phi, number)
        step = number - spec.sketch_rounds + 1
        server = advance(spec, frame, step, server, Gradient(mean, noise_std))
        decay = average_decay(spec, step)
        average = decay * average + (1.0 - decay) * _offsets(frame, states)
    own = {OFFSETS: _offsets(frame, states), AVERAGE: average}
    weights = pack_weights(
        spec, spec.last_training_round, server.phi, server.average,
        **{name: rows.astype(np.float32) for name, rows in own.items()},
    )  # fmt: skip
    body = frame.to_bytes(spec.digest)
    return PaperRun(body, weights, Generator.load(body, weights, spec), states)


def _offsets(frame: Frame, states: dict[str, PrivateState]) -> Vector:
    """[M, c] in the frame's order."""
    return np.stack([states[name].offset for name in frame.clients])


def _sketched(
    spec: RunSpec,
    sites: Sequence[SimulatedSite],
    noise: NoiseSource,
    secret: bytes,
    noise_mode: NoiseMode,
) -> Frame:
    """The frame of a joint run's sketch rounds, under the noise that this plan gives them."""
    plan = spec.plan
    model = plan.model.model_copy(update={"encoder": "shared", "codes": "sketch"})
    alone = plan.privacy.model_copy(update={"mode": "joint", "rounds": 0})
    sketches = spec.model_copy(
        update={"plan": plan.model_copy(update={"privacy": alone, "model": model})}
    )
    done = simulate(sketches, sites, noise=noise, secret=secret, noise_mode=noise_mode)
    frame = done.generator.frame
    if noise_mode == "local":
        return frame
    # One pooled client stands for all: as many clients with its code, which is 0.
    names, count = tuple(site.name for site in sites), len(sites)
    return replace(
        frame,
        codes=np.repeat(frame.codes, count, axis=0),
        sizes=np.repeat(frame.sizes / count, count),
        client_ids=names,
        clients=names,
    )
