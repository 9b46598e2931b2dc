"""A site's word on its own join, given by the command that joins: written down, then sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from core.errors import PlanRefused
from core.federation.plan import RunSpec
from core.wire.protocol import CONSENT
from worker.agent import consent as word
from worker.agent.join_policy import once
from worker.agent.policy import judge_plan
from worker.agent.price import cost
from worker.agent.records import Decision
from worker.agent.site import Site
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig
from worker.errors import ApiProblem, JoinFailed

Say = Callable[[str], None]


def before_asking(
    coordinator: CoordinatorClient, site_config: SiteConfig, config: ClientConfig, run_id: str
) -> None:
    """Before a join is asked for: this client has not joined the run before; and its word on a run
    of secure sums that it has founded is written down. The coordinator asks it no second time, so
    a running agent may be given the order at once.
    """
    if coordinator.protocol < CONSENT:
        return
    try:
        run = coordinator.run(run_id)
    except ApiProblem as problem:
        if problem.status in (403, 404):
            return  # no part of it as yet, hence nothing said and nothing sent
        raise
    spec = RunSpec.model_validate(run["spec"])
    with Site.open(site_config.state_dir) as site:
        try:
            once(spec, config.name, None, site.ledger.entries(config.population))
        except PlanRefused as refusal:
            raise forbidden(refusal) from None
        if config.name in (spec.founding_names or ()) and run["state"] == "completed":
            _judged(spec, config, site, None)
            site.ledger.decide(
                Decision(run_id, config.name, spec.digest, True, "approve", _by(config))
            )


def _by(config: ClientConfig) -> Literal["person", "policy"]:
    return "person" if config.consent == "ask" else "policy"


def _judged(spec: RunSpec, config: ClientConfig, site: Site, number: int | None) -> None:
    entries = site.ledger.entries(config.population)
    try:
        judge_plan(spec, config, entries, joins=True, join_round=number)
    except PlanRefused as refusal:
        raise forbidden(refusal) from None


def approve(
    coordinator: CoordinatorClient,
    site: Site,
    config: ClientConfig,
    run_id: str,
    number: int,
    say: Say,
) -> None:
    """Whoever calls the command has decided: approve the join, within the site's limits.

    A join that these forbid is not refused, which would be final: it may be that a limit is wrong.
    """
    if config.consent == "policy" and coordinator.protocol < CONSENT:
        return  # nobody asks, and the policy judges the order
    spec = RunSpec.model_validate(coordinator.run(run_id)["spec"])
    _judged(spec, config, site, number)
    price = cost(spec, config, site.ledger.entries(config.population), joins=True)
    say(
        f"{config.name}: the join costs epsilon {price.plan:.4g}; the account goes from "
        f"{price.spent:.4g} to {price.after:.4g} of {config.max_epsilon:g}{price.rests}"
    )
    word.say(spec, config, "approve", _by(config), site.ledger, coordinator, joins=True)


def forbidden(refusal: PlanRefused) -> JoinFailed:
    return JoinFailed(
        f"this site's policy refuses the join: {refusal.message} ({refusal.field}). "
        "Nothing was spent.",
        field=refusal.field,
        mend=refusal.mend or "See the limits of this client in the site's configuration.",
    )
