"""``fedhypevae run``: from a plan in a file to a finished run and its report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from core.privacy.premise import NONE, in_words
from core.terminal import printable
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.console import watch
from worker.console.base import (
    JsonOption,
    YesOption,
    app,
    confirmed,
    connected,
    moment,
    named,
    show_json,
    show_list,
    show_table,
    told,
)
from worker.paging import every

run_app = app("Runs: created from a plan, started, watched, paused, cancelled, reported.")

RunArgument = Annotated[str, typer.Argument(help="The run's name or id.")]
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def found(coordinator: CoordinatorClient, run: str) -> JsonObject:
    """The run with this name or id; exit code 1 if there is none."""
    return named(every(coordinator.runs), run, "run")


@run_app.command("create")
def create(
    plan: Annotated[Path, typer.Argument(help="The plan as YAML, TOML or JSON.")],
    clients: Annotated[str, typer.Option(help="Names of the clients, with commas.")],
    name: Annotated[str | None, typer.Option(help="Another name than the plan's.")] = None,
    start_it: Annotated[bool, typer.Option("--start", help="Start it, too.")] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost whom; create nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create a run from a plan: its noise is calibrated (some seconds), budgets are checked.

    With --dry-run the exit code is 1 if the plan does not fit everybody's budget.

    fedhypevae run create plan.yaml --clients site-a,site-b --dry-run

    fedhypevae run create plan.yaml --clients site-a,site-b --start
    """
    from core.federation.plan import Plan
    from worker.console import files

    members = [each.strip() for each in clients.split(",") if each.strip()]
    if not members:
        raise typer.BadParameter("name at least one client", param_hint="--clients")
    with connected() as coordinator:
        wanted = files.read(Plan, plan, "plan")
        if name is not None:
            wanted = Plan.model_validate({**wanted.model_dump(mode="json"), "name": name})
        if dry:
            _show_price(coordinator.plan_budget(wanted, members), as_json=as_json)
            return
        made = coordinator.create_run(wanted, members)
        if start_it:
            made = coordinator.start_run(str(made["id"]))
    if as_json:
        show_json(made)
        return
    started = "running" if start_it else "created; 'fedhypevae run start' starts it"
    typer.echo(f"run {made['name']} ({made['id']}) is {started}")
    typer.echo(f"epsilon {made['epsilon_planned']:.4g} for every client if nothing is lost")
    _say_premise(made)


def _show_price(price: JsonObject, *, as_json: bool) -> None:
    """Exit code 1 where the plan does not fit everybody's budget."""
    if as_json:
        show_json(price)
    else:
        plan = price["plan"]
        typer.echo(f"epsilon {plan['epsilon']:.4g} at delta {plan['delta']:g} for every client")
        _say_premise(plan)
        rows = (
            (
                each["client"],
                f"{each['epsilon_spent']:.4g}",
                f"{each['epsilon_after']:.4g}",
                f"{each['budget']['epsilon']:g}",
                "fits" if each["fits"] else "DOES NOT FIT",
            )
            for each in price["clients"]
        )
        show_table(("CLIENT", "SPENT", "AFTER", "BUDGET", ""), rows, "no clients")
        for each in price["clients"]:
            if (rests := each.get("premise", NONE)) != NONE:
                typer.echo(printable(f"{each['client']}: spent and after hold while {rests}"))
    if price["fits"] is False:
        raise typer.Exit(1)


def _say_premise(told: JsonObject) -> None:
    """Of secure sums epsilon is never said without what it rests on."""
    if said := in_words(told.get("views", ())):
        typer.echo(f"premise: {printable(said)}")


@run_app.command("start")
def start(run: RunArgument, as_json: JsonOption = False) -> None:
    """Start a run; repeating it changes nothing.

    fedhypevae run start wards
    """
    with connected() as coordinator:
        done = coordinator.start_run(str(found(coordinator, run)["id"]))
    _say(done, as_json=as_json)


@run_app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """All runs, oldest first.

    fedhypevae run list
    """
    with connected() as coordinator:
        runs = list(every(coordinator.runs))
    heads = ("NAME", "STATE", "ROUNDS", "CLIENTS", "SUMS", "EPSILON", "CREATED", "ID")
    show_list(runs, heads, _row, "no runs", as_json=as_json)


def _row(run: JsonObject) -> tuple[object, ...]:
    return (
        run["name"],
        run["state"],
        f"{run['rounds_published']}/{run['rounds_planned']}",
        run["clients_total"],
        run["spec"]["plan"].get("aggregation", "plain"),
        f"{run['epsilon_planned']:.4g}",
        moment(run["created_at"]),
        run["id"],
    )


@run_app.command("show")
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Where a run stands, who takes part, and why it waits.

    fedhypevae run show wards --json
    """
    with connected() as coordinator:
        view = watch.look(coordinator, str(found(coordinator, run)["id"]))
    if as_json:
        show_json({"run": view.run, "round": view.round, "epsilon": view.epsilon})
        return
    for line in watch.lines(view):
        typer.echo(printable(line))


@run_app.command("watch")
def watch_(
    run: RunArgument,
    every_s: Annotated[
        float, typer.Option("--every", min=0.1, max=600, help="Seconds between two looks.")
    ] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, when something changes.")
    ] = False,
) -> None:
    """Follow a run until it has ended: live on a terminal, elsewhere a line for every change.

    Exit codes: 0 completed, 1 failed or cancelled, 2 wrong usage, 130 Ctrl-C (the run goes on).

    fedhypevae run watch wards
    """
    with connected() as coordinator:
        run_id = str(found(coordinator, run)["id"])
        try:
            state = watch.follow(coordinator, run_id, every_s=every_s, as_json=as_json)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    if state != "completed":
        raise typer.Exit(1)


@run_app.command("pause")
def pause(
    run: RunArgument,
    span: Annotated[
        str, typer.Option("--for", help="30m, 12h, 7d ... It is cancelled if not resumed by then.")
    ] = "7d",
    as_json: JsonOption = False,
) -> None:
    """Hand out no work and let no deadline pass; nothing is spent meanwhile.

    fedhypevae run pause wards --for 12h
    """
    parts = _SPAN.fullmatch(span)
    if parts is None:
        raise typer.BadParameter("a number with s, m, h or d, such as 12h", param_hint="--for")
    with connected() as coordinator:
        seconds = float(parts[1]) * _SECONDS[parts[2]]
        done = coordinator.pause_run(str(found(coordinator, run)["id"]), seconds)
    _say(done, as_json=as_json)


@run_app.command("resume")
def resume(run: RunArgument, as_json: JsonOption = False) -> None:
    """End a pause.

    fedhypevae run resume wards
    """
    with connected() as coordinator:
        done = coordinator.resume_run(str(found(coordinator, run)["id"]))
    _say(done, as_json=as_json)


@run_app.command("cancel")
def cancel(run: RunArgument, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Stop a run for good; published rounds stay, and so does what was spent.

    fedhypevae run cancel wards --yes
    """
    with connected() as coordinator:
        known = found(coordinator, run)
        confirmed(f"Stop the run {known['name']} for good?", yes)
        done = coordinator.cancel_run(str(known["id"]))
    _say(done, as_json=as_json)


@run_app.command("report")
def report(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="An .html file for people, or a .json file.")],
    number: Annotated[
        int | None, typer.Option("--round", min=0, help="The newest if absent.")
    ] = None,
) -> None:
    """What the model is, what it has cost each client, and what it is worth, in one file.

    fedhypevae run report wards --out wards.html
    """
    import json

    from core.files import whole_file

    which: int | Literal["latest"] = "latest" if number is None else number
    with connected() as coordinator:
        run_id = str(found(coordinator, run)["id"])
        if out.suffix.lower() == ".json":
            text = json.dumps(coordinator.report(run_id, which), indent=2) + "\n"
        else:
            text = coordinator.report_page(run_id, which)
        with told(), whole_file(out) as file:
            file.write(text.encode())
    typer.echo(f"{out}: the report of {printable(run)}")


def _say(run: JsonObject, *, as_json: bool) -> None:
    if as_json:
        show_json(run)
    else:
        why = f": {run['why']}" if run["why"] else ""
        typer.echo(printable(f"run {run['name']} is {run['state']}{why}"))
