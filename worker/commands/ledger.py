"""A site's ledger: shown, compared with the coordinator's, backed up, restored, completed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.commands.base import ClientOption, JsonOption, chosen, connected, prepare, stop, told


def show(
    client: ClientOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what this site has spent, recomputed from its own ledger."""
    from worker.agent.report import accounts, print_tables
    from worker.agent.site import Site

    with told():
        settings = prepare()
        site_config = settings.require_site()
        if not site_config.state_dir.exists():
            stop(f"nothing was spent: {site_config.state_dir} does not exist yet.")
        with Site.open(site_config.state_dir) as site:
            found: list[dict[str, Any]] = accounts(site, chosen(site_config, client))
    if as_json:
        print(json.dumps({"site": str(site_config.state_dir), "accounts": found}, indent=2))
    else:
        print_tables(found)


def compare(
    client: ClientOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare this site's ledger with the coordinator's; exit 1 if they contradict each other."""
    from worker.agent.identity import accounts
    from worker.agent.reconcile import verify
    from worker.agent.report import verdict, verdict_lines
    from worker.agent.site import Site

    with told(), connected() as (_, site_config, coordinator):
        chosen = accounts(coordinator, site_config, client)
        with Site.open(site_config.state_dir) as site:
            found = [
                (config.name, verify(site, coordinator, client_id, config, site_config))
                for client_id, config in chosen
            ]
    if as_json:
        print(json.dumps({"accounts": [verdict(*each) for each in found]}, indent=2))
    else:
        print("\n".join(line for each in found for line in verdict_lines(*each)))
    if any(comparison.discrepancies for _, comparison in found):
        raise typer.Exit(1)


def back_up(
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A folder to be made.")],
) -> None:
    """Copy ledger and secret consistently, also while agents work, and read the copy back."""
    from worker.agent import backup

    with told():
        site = prepare().require_site()
        if not (site.state_dir / "site.key").exists():
            stop(f"there is nothing to back up in {site.state_dir} yet.")
        made = backup.make(site.state_dir, destination)
    print(
        f"{destination}: {made.entries} entries of site {made.site_id}, read back. Keep it secret."
    )


def restore(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder made by 'backup'.")],
) -> None:
    """Put a backup in place of a lost ledger, and complete it from the coordinator's ledger.

    Stop all agents and workers of the site first. Exit 1 while something is left to complete.
    """
    from worker.agent import backup

    with told():
        site = prepare().require_site()
        restored = backup.restore(source, site.state_dir)
    print(
        f"{site.state_dir}: restored {restored.entries} entries of {restored.made_at}. Nothing can "
        "be spent before they were compared with the coordinator's ledger.",
        flush=True,
    )
    complete(None)


def complete(client: ClientOption = None) -> None:
    """Complete a restored ledger from the coordinator's; exit 1 while something is left to do."""
    from worker.agent.identity import accounts
    from worker.agent.reconcile import reconcile
    from worker.agent.site import Site

    with told(), connected() as (_, site_config, coordinator):
        chosen = accounts(coordinator, site_config, client)
        with Site.open(site_config.state_dir) as site:
            for client_id, config in chosen:
                booked = reconcile(site, coordinator, client_id, config, site_config)
                done = "nothing to do" if booked is None else f"charged {booked} attempts as lost"
                print(f"population {config.population}: {done}", flush=True)
            populations = dict.fromkeys(each.population for each in site_config.client)
            left = [name for name in populations if site.ledger.unreconciled(name)]
    if left:
        stop(
            f"not completed yet: {', '.join(left)}. Run 'fedhypevae agent reconcile' with a token "
            "of a client of each, or with an auditor's."
        )
