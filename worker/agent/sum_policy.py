"""What a site asks of runs of secure sums beyond what it asks of every run. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import PlanRefused
from core.federation.plan import RunSpec
from core.privacy.views import views_of_plan
from worker.config import ClientConfig


def peers_pinned(spec: RunSpec, config: ClientConfig, unpinned: Sequence[str]) -> None:
    """Raises ``PlanRefused`` unless this site's people have pinned all other clients' keys."""
    pin = (
        "Compare fingerprints with their people: "
        f"'fedhypevae agent identity peers {spec.run_id} --client {config.name}'."
    )
    if config.peers is None:
        raise PlanRefused(
            "its sums are secure ones, and no keys of other clients are pinned here",
            field="peers",
            mend=f'Add peers = "peers.json" to this [[client]]. {pin}',
        )
    if unpinned:
        raise PlanRefused(
            f"its sums are secure ones, and no key of {', '.join(unpinned)} is pinned here",
            field="peers",
            mend=pin,
        )


def without_premise(spec: RunSpec, config: ClientConfig) -> None:
    """Raises ``PlanRefused`` if the plan would cost more, against everybody else together, than the
    configuration allows: for adding or removing one unit, at its delta, with the noise of this
    client alone. The plan names all clients; a sum of fewer of them has more noise of each.
    """
    limit = config.max_epsilon_everybody
    if limit is None or spec.plan.aggregation != "secure":
        return
    clients = len(spec.founding_names or ())
    try:
        found = {
            view.who: view.epsilon for view in views_of_plan(spec, clients, delta=config.delta)
        }
    except ValueError as error:
        raise PlanRefused(f"no secure sum is possible: {error}", field="plan.secure") from None
    if found["everybody"] > limit:
        raise PlanRefused(
            f"against everybody else together it costs epsilon {found['everybody']:.4g}, above the "
            f"configured {limit:g}",
            field="plan.secure",
            mend="Ask for fewer clients, a larger noise, or plain sums.",
        )
