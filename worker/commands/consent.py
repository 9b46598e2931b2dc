"""A site's word on the plans of runs."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from worker.commands.base import ClientOption, JsonOption, connected, told

RunArgument = Annotated[str, typer.Argument(help="The run's id or name.")]
_LONGEST_WHY = 200


def show_plans(
    client: ClientOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also what this site has answered already.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Runs that ask for this site's records: what each costs, and what the policy says."""
    from worker.agent import plans
    from worker.agent.site import Site

    with (
        told(),
        connected() as (_, site_config, coordinator),
        Site.open(site_config.state_dir) as site,
    ):
        state = None if every else "asked"
        found = plans.shown(coordinator, site_config, site, client, state=state)
    if as_json:
        print(json.dumps({"plans": plans.as_json(found)}, indent=2))
    elif found:
        plans.print_table(found)
    else:
        print("nothing awaits this site's word" if not every else "no run has asked this site")


def approve(run: RunArgument, client: ClientOption = None) -> None:
    """Approve a run's plan, within the limits of the configuration."""
    _decide(run, "approve", client, "")


def refuse(
    run: RunArgument,
    client: ClientOption = None,
    why: Annotated[
        str, typer.Option("--why", help="For the coordinator's administrator; 200 characters.")
    ] = "",
) -> None:
    """Refuse a run's plan for good; exit 1 if the coordinator has it as approved."""
    if len(why) > _LONGEST_WHY:
        raise typer.BadParameter(f"at most {_LONGEST_WHY} characters", param_hint="--why")
    _decide(run, "refuse", client, why)


def _decide(run: str, verb: Literal["approve", "refuse"], client: str | None, why: str) -> None:
    from worker.agent import plans
    from worker.agent.site import Site

    with (
        told(),
        connected() as (_, site_config, coordinator),
        Site.open(site_config.state_dir) as site,
    ):
        lines = plans.decide(coordinator, site_config, site, run, verb, client=client, why=why)
    for line in lines:
        print(line)
