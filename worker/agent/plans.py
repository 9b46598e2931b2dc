"""``fedhypevae agent plans``, ``approve`` and ``refuse``: runs that ask for this site's records.

Prices come from the site's own configuration and ledger; from the coordinator, only which runs
there are. A running agent may poll meanwhile: it finds the word in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from core.errors import PlanRefused
from core.federation.plan import RunSpec
from core.privacy.premise import View
from core.wire.messages import PlanOffer
from core.wire.protocol import CONSENT
from worker.agent.consent import Verb, say
from worker.agent.identity import configured
from worker.agent.policy import judge_plan
from worker.agent.premise import Members, members, sentence, views_here
from worker.agent.price import Cost, cost
from worker.agent.records import Decision
from worker.agent.site import Site
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig
from worker.errors import ApiProblem, ConsentError

_WIDTH = 160


@dataclass(frozen=True)
class Shown:
    """A plan with what this site makes of it. ``state`` is the coordinator's, ``word`` ours."""

    run: str
    spec: RunSpec
    config: ClientConfig
    joins: bool
    state: str
    deadline: datetime | None
    cost: Cost | None
    refusal: PlanRefused | None
    word: Decision | None
    sums: Members | None = None
    views: tuple[View, ...] = ()

    @property
    def premise(self) -> str | None:
        """Of secure sums: against whom their price holds."""
        if self.sums is None or not self.views:
            return None
        return sentence(self.spec, self.sums.clients, self.views)

    @property
    def rounds(self) -> int:
        """In how many the client takes part at most."""
        if self.joins:
            return 1
        return self.spec.last_round + 1 if self.cost is None else len(self.spec.events())


def shown(
    coordinator: CoordinatorClient,
    site_config: SiteConfig,
    site: Site,
    client: str | None,
    *,
    state: str | None = None,
    run: str | None = None,
) -> list[Shown]:
    """Plans (of one run, by its id or name) of the clients for which our token speaks: a client's
    own, or a worker's for all clients of this site. Raises ``ClientError`` or ``ConfigError``.
    """
    chosen = site_config.client if client is None else (site_config.require(client),)
    try:
        me = coordinator.client("me")
    except ApiProblem as problem:
        if problem.problem != "forbidden":
            raise
        client_id, mine = None, {config.name: config for config in chosen}
    else:
        own = configured(me, site_config)
        client_id, mine = str(me["id"]), {own.name: own} if own in chosen else {}
    if coordinator.protocol < CONSENT:
        return [
            _of(site, mine[name], spec, called, joins=False, state="not asked", deadline=None)
            for called, spec, names in _runs(coordinator)
            for name in names
            if name in mine and run in (None, called, spec.run_id)
        ]
    return [
        _offered(site, mine[plan.client], plan, coordinator)
        for plan in coordinator.plans(client_id, state=state)
        if plan.client in mine and run in (None, plan.run, plan.run_id)
    ]


def _runs(coordinator: CoordinatorClient) -> list[tuple[str, RunSpec, list[str]]]:
    """Runs that go on, at a coordinator that does not ask (protocol 1)."""
    found = []
    query: dict[str, str | int] = {}
    while True:
        page = coordinator.runs(**query)
        found += [
            (str(run["name"]), RunSpec.model_validate(run["spec"]), list(run["clients"]))
            for run in page["items"]
            if run["state"] in ("draft", "running")
        ]
        if page["next"] is None:
            return found
        query["after"] = page["next"]


def _offered(
    site: Site, config: ClientConfig, plan: PlanOffer, coordinator: CoordinatorClient
) -> Shown:
    if plan.spec.digest != plan.spec_digest:
        raise ConsentError(
            f"the plan of run {plan.run} is not the one whose digest the coordinator names.",
            field="spec_digest",
            mend="Tell the coordinator's administrator.",
        )
    return _of(
        site,
        config,
        plan.spec,
        plan.run,
        joins=plan.joins,
        state=plan.state,
        deadline=plan.deadline,
        join_round=plan.round_number if plan.joins else None,
        sums=members(plan.spec, config, joins=plan.joins),
    )


def _of(
    site: Site,
    config: ClientConfig,
    spec: RunSpec,
    run: str,
    *,
    joins: bool,
    state: str,
    deadline: datetime | None,
    join_round: int | None = None,
    sums: Members | None = None,
) -> Shown:
    entries = site.ledger.entries(config.population)
    price, refusal = None, None
    views: tuple[View, ...] = ()
    try:
        if sums is not None:
            site.ledger.sums.require_open(spec.run_id)
            views = views_here(spec, config, sums.clients)
        unpinned = () if sums is None else sums.unpinned
        judge_plan(spec, config, entries, joins=joins, join_round=join_round, unpinned=unpinned)
    except PlanRefused as error:
        refusal = error
    if not spec.plan.privacy.caveat:
        price = cost(spec, config, entries, joins=joins)
    word = site.ledger.word(spec.run_id, config.name)
    return Shown(run, spec, config, joins, state, deadline, price, refusal, word, sums, views)


def decide(
    coordinator: CoordinatorClient,
    site_config: SiteConfig,
    site: Site,
    run: str,
    verb: Verb,
    *,
    client: str | None = None,
    why: str = "",
) -> list[str]:
    """A person's word on a run (its id or name), for one or all clients of this site that it asks;
    lines that say what was done. Raises ``ConsentError`` where the site's limits forbid a yes.
    """
    plans = shown(coordinator, site_config, site, client, run=run)
    if not plans:
        names = ", ".join(config.name for config in site_config.client)
        raise ConsentError(
            f"run {run!r} asks for no client of this site for which the token speaks ({names}).",
            field="run",
            mend="See 'fedhypevae agent plans --all'.",
        )
    lines: list[str] = []
    for plan in plans:
        name, config = plan.config.name, plan.config
        if verb == "approve" and plan.refusal is not None:
            raise ConsentError(
                f"{name}: the site's limits forbid run {plan.run}, whoever approves it: "
                f"{plan.refusal.message} ({plan.refusal.field}).",
                field=plan.refusal.field,
                mend=plan.refusal.mend or "See the limits of this client in the configuration.",
            )
        done = "approved" if verb == "approve" else "refused"
        try:
            say(
                plan.spec, config, verb, "person", site.ledger, coordinator,
                joins=plan.joins, why=why,
            )  # fmt: skip
        except ApiProblem as problem:
            raise ConsentError(
                f"{name}: run {plan.run} is {done} in this site's own ledger, by which it goes; "
                f"the coordinator says: {problem.detail}.",
                mend=problem.mend,
            ) from problem
        lines.append(f"{name}: run {plan.run} ({plan.spec.run_id}) is {done}")
        if plan.cost is not None and verb == "approve":
            lines.append(
                f"{name}: epsilon {plan.cost.plan:.4g} for {plan.rounds} rounds; the account of "
                f"{config.population} goes from {plan.cost.spent:.4g} to {plan.cost.after:.4g} of "
                f"{config.max_epsilon:g} at delta {config.delta:g}{plan.cost.rests}"
            )
            if plan.premise is not None:
                lines.append(f"{name}: {plan.premise}")
    return lines


def as_json(plans: Sequence[Shown]) -> list[dict[str, Any]]:
    """Plain values."""
    return [
        {
            "run_id": plan.spec.run_id,
            "run": plan.run,
            "client": plan.config.name,
            "population": plan.config.population,
            "joins": plan.joins,
            "rounds": plan.rounds,
            "epsilon_plan": plan.cost and plan.cost.plan,
            "epsilon_spent": plan.cost and plan.cost.spent,
            "epsilon_after": plan.cost and plan.cost.after,
            "max_epsilon": plan.config.max_epsilon,
            "delta": plan.config.delta,
            "views": [view.model_dump() for view in plan.views] or None,
            "policy": "allows" if plan.refusal is None else "refuses",
            "policy_field": plan.refusal and plan.refusal.field,
            "policy_reason": plan.refusal and plan.refusal.message,
            "word": plan.word and plan.word.decision,
            "state": plan.state,
            "deadline": plan.deadline and plan.deadline.isoformat(),
            "spec_digest": plan.spec.digest,
        }
        for plan in plans
    ]


def print_table(plans: Sequence[Shown]) -> None:
    """One line a plan (its run's id is in the JSON); why the policy refuses stands below."""
    console = Console(soft_wrap=True)
    console.width = max(console.width, _WIDTH)  # a number that is cut is worse than a long line
    table = Table(
        "run", "client", "rounds", "epsilon", "spent", "after", "limit", "policy", "state", "until",
        box=box.SIMPLE,
    )  # fmt: skip
    for plan in plans:
        price = plan.cost
        numbers = ("-", "-", "-") if price is None else (price.plan, price.spent, price.after)
        table.add_row(
            plan.run,
            plan.config.name,
            "join" if plan.joins else str(plan.rounds),
            *(value if isinstance(value, str) else f"{value:.4g}" for value in numbers),
            f"{plan.config.max_epsilon:g}",
            "allows" if plan.refusal is None else "refuses",
            _said(plan),
            "" if plan.deadline is None else f"{plan.deadline:%Y-%m-%dT%H:%M:%SZ}",
        )
    console.print(table)
    for plan in plans:
        if plan.premise is not None:
            console.print(
                f"{plan.config.name}: {plan.run}: {plan.premise}", markup=False, highlight=False
            )
        if plan.premise is None and plan.cost is not None and plan.cost.rests:
            console.print(
                f"{plan.config.name}: {plan.run}: spent and after{plan.cost.rests}",
                markup=False,
                highlight=False,
            )
        if plan.refusal is not None:
            console.print(
                f"{plan.config.name}: {plan.run}: the policy refuses: {plan.refusal.message} "
                f"({plan.refusal.field})",
                markup=False,
                highlight=False,
            )


def _said(plan: Shown) -> str:
    """The coordinator's state, and our own record where that says something else."""
    own = {"approve": "approved", "refuse": "refused"}
    here = own[plan.word.decision] if plan.word is not None else ""
    return plan.state if here in ("", plan.state) else f"{plan.state} ({here} here)"
