"""One round's secure sum: its session and grid, both computed by everybody from public values.

Neighbouring relation and sensitivity: ``core.privacy.mechanism`` for each client's clipped sum,
``core.privacy.discrete.lattice`` for what the grid adds. M clients are asked; the sum of at least
M - drop of them, seen by somebody who knows the noise of ``collude`` of these, is as noisy as
``spec.event(round_number)`` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from core.errors import PlanRefused, UpdateNoiseImplausible, UpdateNormImplausible
from core.federation.null_test import accepted
from core.federation.plan import RunSpec
from core.federation.updates import TENSOR
from core.models.layout import layout_of
from core.privacy.discrete import lattice
from core.privacy.discrete.lattice import Lattice
from core.privacy.mechanism import sensitivity
from core.secagg.collector import Collector
from core.secagg.graph import Thresholds, quorum
from core.secagg.messages import Session, Transcript
from core.wire import tensors
from core.wire.messages import ObjectRef

ALL_SITES = "all-sites"
"""The one client that a model of secure sums knows: all of them together."""


def grid_of(spec: RunSpec, round_number: int, clients: int) -> Lattice:
    """The grid of a round's sum over ``clients``. Raises ``ValueError`` where none fits."""
    terms, bound = spec.plan.secure, sensitivity(spec, round_number)
    Thresholds.of(clients, terms.drop, terms.collude)
    return lattice.design(
        bound=bound,
        length=layout_of(spec, round_number).update_length,
        noise_multiplier=spec.event(round_number).noise_multiplier,
        shares=clients - terms.drop - terms.collude,
        contributions=clients,
        largest=spec.plan.privacy.n_max * bound,
    )


def noise_gain(spec: RunSpec, round_number: int, clients: int, survivors: int) -> float:
    """Standard deviation of the noise in the sum of ``survivors`` of ``clients`` contributions, in
    terms of what the round's event promises against those who know ``collude`` of them: above 1,
    unless only the promised shares are left. Public, hence free for whatever weighs by noise.
    """
    grid = grid_of(spec, round_number, clients)
    promised = spec.event(round_number).noise_multiplier * sensitivity(spec, round_number)
    return math.sqrt(survivors) * grid.noise_std / promised


def bound(inputs: Sequence[ObjectRef]) -> tuple[str, ...]:
    """What an order's inputs are in its session: the role is part of it, for the same two objects
    with their roles exchanged are another model. Raises ``ValueError`` for a role that comes twice.
    """
    named = {ref.role: f"{ref.role}={ref.digest}" for ref in inputs}
    if len(named) != len(inputs):
        raise ValueError("two inputs have one role")
    return tuple(sorted(named.values()))


def crowd_of(spec: RunSpec) -> int:
    """How many clients a sum has at the least: the plan's quorum, the crowd in which its clients
    agreed to hide; and more than half of the founding ones and ``collude`` together, so that no two
    sums of one round can be opened: an honest client would be in both, and answers in one.
    """
    founding = len(spec.founding_names or ())
    return max(spec.plan.round.quorum, quorum(founding, spec.plan.secure.collude))


def session_of(
    spec: RunSpec, round_number: int, clients: Sequence[str], inputs: Sequence[str] = ()
) -> Session:
    """The session in which these clients (names) are asked; ``inputs``: ``bound`` of the objects
    that their orders will name. Raises ``ValueError``, also for fewer than ``crowd_of`` the plan.
    """
    if len(clients) < (least := crowd_of(spec)):
        raise ValueError(
            f"{len(clients)} clients are fewer than the {least} that the plan asks for"
        )
    grid = grid_of(spec, round_number, len(clients))
    return Session(
        plan=spec.digest,
        inputs=tuple(inputs),
        run_id=spec.run_id,
        round_number=round_number,
        attempt=1,  # a round whose sum fails is not tried again
        sites=tuple(clients),
        drop=spec.plan.secure.drop,
        collude=spec.plan.secure.collude,
        length=layout_of(spec, round_number).update_length,
        bits=grid.bits,
    )


def check_session(spec: RunSpec, round_number: int, session: Session) -> None:
    """At a site: the session is the one that the plan implies for these clients, and they are
    founding clients of the run. Raises ``PlanRefused``: with other thresholds, another grid or
    other clients the sum would promise less.
    """
    try:
        if not spec.is_secure(round_number):
            raise ValueError(f"round {round_number} of this plan has none")
        expected = session_of(spec, round_number, session.sites, session.inputs)
    except ValueError as error:
        raise PlanRefused(f"no secure sum is possible: {error}", field="session") from None
    if session != expected:
        raise PlanRefused(
            "the session is not the one that the plan implies for its clients", field="session"
        )
    strangers = sorted(set(session.sites) - set(spec.founding_names or ()))
    if strangers:
        raise PlanRefused(
            f"the plan does not name {', '.join(strangers)} among its founding clients",
            field="session.sites",
        )


def summed(transcript: Transcript, masked: Mapping[str, bytes], spec: RunSpec) -> bytes:
    """The round's sum as an update file of ``ALL_SITES``; ``masked``: survivors' vectors by name.

    Raises an ``UpdateRejected`` for a sum that is not what so many clients can have sent, and
    ``core.secagg.collector.TooFew`` where shares are missing.
    """
    session = transcript.session
    number = session.round_number
    total = Collector.of(transcript, masked).total()
    grid = grid_of(spec, number, len(session.sites))
    check_sum(spec, number, total, grid, contributions=len(masked))
    layout = layout_of(spec, number)
    metadata = {"layout": layout.digest, "spec": spec.digest, "round": str(number)}
    vector = (total * grid.step).astype(np.float32)
    return tensors.pack({TENSOR: vector}, metadata)


def check_sum(
    spec: RunSpec, round_number: int, total: NDArray[np.int64], grid: Lattice, contributions: int
) -> None:
    """All that can be checked of a sum of masked vectors: its null coordinates carry the noise of
    so many contributions (an excess says that somebody's vector is wrong, a lack that somebody's
    noise is), and its norm is that of honest clients. Who it was, nobody can say.
    """
    size = layout_of(spec, round_number).size
    steps = total.astype(np.float64)
    std = math.sqrt(contributions * grid.variance)
    low, high = accepted(1)
    ratio = float(np.linalg.norm(steps[size:])) / std
    if not low <= ratio <= high:
        raise UpdateNoiseImplausible(
            f"the sum's null coordinates carry {ratio / math.sqrt(len(steps) - size):.3g} times "
            "the promised noise: at least one client's vector is not what the protocol asks for",
            mend="Compare the versions of the sites' software.",
        )
    bound = contributions * spec.plan.privacy.n_max * sensitivity(spec, round_number) / grid.step
    limit = bound + std * (math.sqrt(size) + 10.0)
    norm = float(np.linalg.norm(steps[:size]))
    if norm > limit:
        raise UpdateNormImplausible(
            f"the sum's norm {norm * grid.step:.4g} is above the limit {limit * grid.step:.4g} of "
            "n_max clipped units of each client"
        )
