"""What a run of secure sums costs against whom: the booked epsilon, and what others could infer.

Neighbouring relation: add or remove one unit of one site. Sensitivity: that of the round's grid
(``core.privacy.discrete.lattice``), in steps. Each of M sites adds N_Z(., V) to its vector. Whoever
sees the sum and knows all noise but that of k contributions, the protected site's among them, faces
a discrete Gaussian of variance k V, which hides a unit as well as a Gaussian of noise multiplier
sqrt(k V - 16) / sensitivity (theorem 1 of docs/discrete-noise.md); the accountant composes these.

Premise of each view: so many sites, as it says, keep to the protocol and keep their noise to
themselves. ``everybody`` has no premise at all. Drop-outs are counted as if all that may go missing
did. A round of fewer sites than named here makes no view of a plan with ``secure.collude`` >= 1
worse, but for the last step of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.federation.plan import RoundKind, RunSpec
from core.federation.secure_sum import grid_of
from core.privacy.accounting import epsilon
from core.privacy.discrete.gaussian import SMOOTH
from core.privacy.discrete.lattice import Lattice
from core.privacy.events import PrivacyEvent
from core.privacy.premise import NONE, ONLOOKERS, View, Who, premise

_DOWN = 1.0 - 2.0**-40  # of a multiplier: the root's and the quotient's rounding, and more


@dataclass(frozen=True)
class Release:
    """One event; of a secure sum with the round's grid."""

    event: PrivacyEvent
    grid: Lattice | None = None


def release_of(spec: RunSpec, round_number: int, clients: int) -> Release:
    """A round's release. Raises ``ValueError`` where no secure sum of so many clients exists."""
    event = spec.event(round_number)
    if not spec.is_secure(round_number):
        return Release(event)
    return Release(event, grid_of(spec, round_number, clients))


def views_of_plan(
    spec: RunSpec, clients: int, up_to: int | None = None, delta: float | None = None
) -> tuple[View, ...]:
    """Views of all that the plan asks of one of ``clients`` founding clients, at its delta or
    another; of a secure plan ``up_to`` this round, if one is given.

    Raises ``ValueError`` where no secure sum of so many clients exists.
    """
    done: dict[RoundKind, Release] = {}
    releases = []
    last = spec.last_round if up_to is None else min(up_to, spec.last_round)
    for number in range(last + 1):
        key = spec.kind(number)
        if key not in done:  # rounds of one kind have one grid
            done[key] = release_of(spec, number, clients)
        releases.append(done[key])
    if not any(each.grid for each in releases):
        releases = [Release(event) for event in spec.events()]
    return views(releases, spec.plan.privacy.delta if delta is None else delta)


def views_of_secure(spec: RunSpec, clients: int, up_to: int | None = None) -> tuple[View, ...]:
    """The same of a secure plan; none of another, whose every release is safe by itself."""
    return views_of_plan(spec, clients, up_to) if spec.plan.aggregation == "secure" else ()


def views(releases: Iterable[Release], delta: float) -> tuple[View, ...]:
    """Views of some releases of one account together, whatever runs they are of, at ``delta``."""
    known = list(releases)
    premises = _premises(known)
    return tuple(
        View(who=who, epsilon=epsilon([seen(each, who) for each in known], delta), premise=said)
        for who, said in premises.items()
    )


def seen(release: Release, who: Who) -> PrivacyEvent:
    """The event as ``who`` sees it. A release that is as safe by itself is the same for all."""
    event, grid = release.event, release.grid
    if grid is None or who == "booked":
        return event
    collude = event.collude or 0
    survivors = grid.shares + collude
    unknown = {"coordinator": survivors, "client": survivors - 1, "everybody": 1}[who]
    multiplier = math.sqrt(unknown * grid.variance - SMOOTH**2) / grid.sensitivity * _DOWN
    return event.model_copy(update={"noise_multiplier": multiplier, "collude": None})


def _premises(releases: Sequence[Release]) -> dict[Who, str]:
    allowed = [each.event.collude or 0 for each in releases if each.grid is not None]
    if not allowed:
        return dict.fromkeys(ONLOOKERS, NONE)
    return {
        "booked": premise(allowed),
        "coordinator": "no other client works with the coordinator",
        "client": "no other client, and not the coordinator, works with the one that looks",
        "everybody": NONE,
    }
