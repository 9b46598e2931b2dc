"""What reads a site's records on the spot: the check before a run, the report after it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.commands.base import ClientOption, chosen, connected, prepare, told


def check(
    client: ClientOption = None,
    space: Annotated[
        Path | None,
        typer.Option("--space", help="The embedding space as JSON; asked of the coordinator else."),
    ] = None,
) -> None:
    """Load the data as a round would and print every problem; exit 1 if there is one."""
    from worker.agent.check import check_client, read_space

    with told():
        settings = prepare()
        site = settings.require_site()
        contract = None if space is None else read_space(space)
        failed = False
        for config in chosen(site, client):
            report = check_client(config, settings, contract)
            for line in report.facts:
                print(f"{config.name}: {line}")
            for problem in report.problems:
                print(f"{config.name}: PROBLEM: {problem}")
            failed |= bool(report.problems)
    if failed:
        raise typer.Exit(1)


def report(
    run: Annotated[str, typer.Option("--run", help="The run's id or name.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")],
    client: ClientOption = None,
    holdout: Annotated[
        Path | None,
        typer.Option("--holdout", help="A file of records that the run has never seen."),
    ] = None,
) -> None:
    """Measure a run's model on this site's raw records, into a file that must stay here.

    NOT PRIVATE: no noise is added, and nothing is sent.
    """
    from core.report.local import STAMP
    from worker.agent.local_report import write_report

    with told(), connected() as (_, site, coordinator):
        local = write_report(coordinator, site, run, out, client=client, unused=holdout)
    print(f"{out}: {local.client}, on {local.tested}. {STAMP}.")
