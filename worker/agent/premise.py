"""Against whom the price of a plan of secure sums holds, by the site's own accountant.

Whose sums they are, the plan says; that each of these is somebody else than the coordinator, the
keys that this site's people have pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import PlanRefused
from core.federation.plan import RunSpec
from core.privacy.premise import View
from core.privacy.views import views_of_plan
from worker.agent import peers
from worker.config import ClientConfig


@dataclass(frozen=True)
class Members:
    """Of a run of secure sums: how many clients it asks, this one included, and whose keys are not
    pinned here.
    """

    clients: int
    unpinned: tuple[str, ...]


def members(spec: RunSpec, config: ClientConfig, *, joins: bool) -> Members | None:
    """None for a plan without secure sums; a client that ``joins`` later takes part in none.
    Raises ``ConfigError``.
    """
    if joins or spec.plan.aggregation != "secure":
        return None
    names = list(spec.founding_names or ())
    return Members(len(names), tuple(peers.unknown_of(config, names)))


def views_here(spec: RunSpec, config: ClientConfig, clients: int) -> tuple[View, ...]:
    """What all of the plan costs one of ``clients`` against whom, at this client's delta. For
    adding or removing one unit. Raises ``PlanRefused`` where no secure sum of so many is possible.
    """
    try:
        return views_of_plan(spec, clients, delta=config.delta)
    except ValueError as error:
        raise PlanRefused(
            f"no secure sum of {clients} clients is possible: {error}", field="plan.secure"
        ) from None


def sentence(spec: RunSpec, clients: int, found: Sequence[View]) -> str:
    """For whoever consents: the number that is charged, and what it is without its premise."""
    epsilon = {view.who: view.epsilon for view in found}
    return (
        f"its sums are secure ones: epsilon {epsilon['booked']:.4g} holds against the coordinator "
        f"and up to {spec.plan.secure.collude} colluding clients of {clients}; it is "
        f"{epsilon['coordinator']:.4g} against the coordinator alone, {epsilon['client']:.4g} "
        f"against one other client, {epsilon['everybody']:.4g} against everybody else together"
    )
