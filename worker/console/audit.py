"""``fedhypevae admin audit``: who did what, when."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from core.terminal import printable
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.console.base import JsonOption, app, connected, moment, named, show_json
from worker.errors import Unreachable
from worker.paging import every

audit_app = app("The audit trail: who did what, when.")

KindOption = Annotated[list[str] | None, typer.Option("--kind", help="Only these; repeatable.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Only of this run (name or id).")]
ClientOption = Annotated[
    str | None, typer.Option("--client", help="Only about this client (name or id).")
]


@audit_app.command("list")
def audit_list(
    last: Annotated[
        int, typer.Option("--last", min=1, max=200, help="So many of the newest.")
    ] = 20,
    kind: KindOption = None,
    run: RunOption = None,
    client: ClientOption = None,
    as_json: JsonOption = False,
) -> None:
    """The newest events, oldest of them first.

    fedhypevae admin audit list --last 50 --kind token-created --kind token-revoked
    """
    with connected() as coordinator:
        which = _which(coordinator, kind, run, client)
        found = _newest(coordinator, which, last)
    if as_json:
        show_json(found)
        return
    for event in found:
        typer.echo(_line(event))


@audit_app.command("follow")
def audit_follow(
    last: Annotated[
        int, typer.Option("--last", min=0, max=200, help="First so many of the newest.")
    ] = 10,
    kind: KindOption = None,
    run: RunOption = None,
    client: ClientOption = None,
    every_s: Annotated[
        float, typer.Option("--every", min=0.1, max=3600, help="Seconds between two looks.")
    ] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """The newest events, and then what happens, until Ctrl-C. An outage is waited out.

    fedhypevae admin audit follow --json | jq .kind
    """
    with connected() as coordinator:
        which = _which(coordinator, kind, run, client)
        found = _newest(coordinator, which, max(last, 1))
        shown = found[-last:] if last else []
        try:
            while True:
                for event in shown:
                    typer.echo(json.dumps(event) if as_json else _line(event))
                if found:
                    which = {**which, "after": str(found[-1]["id"])}
                time.sleep(every_s)
                try:
                    shown = found = list(every(coordinator.events, **which))
                except Unreachable as error:
                    typer.echo(f"fedhypevae: {error.message} Trying again.", err=True)
                    shown = found = []
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def _which(
    coordinator: CoordinatorClient, kind: list[str] | None, run: str | None, client: str | None
) -> dict[str, Any]:
    which: dict[str, Any] = {} if not kind else {"kind": kind}
    if run is not None:
        which["run"] = str(named(every(coordinator.runs), run, "run")["id"])
    if client is not None:
        which["client"] = str(named(every(coordinator.clients), client, "client")["id"])
    return which


def _newest(coordinator: CoordinatorClient, which: dict[str, Any], last: int) -> list[JsonObject]:
    page = coordinator.events(**which, order="desc", limit=last)
    return list(reversed(page["items"]))


def _line(event: JsonObject) -> str:
    about = [f"round {event['round']}"] if event["round"] is not None else []
    about += [f"{key}={value}" for key, value in event["detail"].items()]
    about += [f"run={event['run_id']}"] if event["run_id"] else []
    about += [f"client={event['client_id']}"] if event["client_id"] else []
    return printable(
        f"{moment(event['at'])}  {event['kind']:<22} {event['actor']:<11} {' '.join(about)}"
    ).rstrip()
