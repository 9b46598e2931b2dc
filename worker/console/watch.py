"""A run as it goes: rounds, who is missing, why it waits, what it has cost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import typer

from core.privacy.premise import in_words
from core.terminal import printable
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.console.base import moment
from worker.errors import Unreachable

ENDED = frozenset({"completed", "failed", "cancelled"})
_SHOWN = 12  # clients with a line of their own


@dataclass(frozen=True)
class View:
    """One look. ``epsilon``: what each client's population has paid for the published model."""

    run: JsonObject
    round: JsonObject | None
    epsilon: dict[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.run["state"] in ENDED

    @property
    def why(self) -> str:
        """Of the run, else of its round: never empty while somebody waits for something."""
        return str(self.run["why"] or ("" if self.round is None else self.round["why"]))

    @property
    def paid(self) -> float:
        return max(self.epsilon.values(), default=0.0)

    @property
    def premise(self) -> str:
        """What epsilon rests on; empty unless sums are secure."""
        return printable(in_words(self.run.get("views", ())))

    @property
    def cost(self) -> str:
        """In a line of its own there is no room for the premise, but for that there is one."""
        said = f"epsilon {self.paid:.4g} of {self.run['epsilon_planned']:.4g}"
        return f"{said} (on the premise of secure sums)" if self.premise else said


def look(coordinator: CoordinatorClient, run_id: str, before: View | None = None) -> View:
    """Where the run stands. Epsilon is asked for again only when another round was published."""
    run = coordinator.run(run_id)
    number = run["current_round"]
    round_ = None if number is None else coordinator.round(run_id, int(number))
    if before is not None and before.run["rounds_published"] == run["rounds_published"]:
        return View(run, round_, before.epsilon)
    if not run["rounds_published"]:
        return View(run, round_)
    spent = coordinator.model(run_id)["per_client"]
    return View(run, round_, {each["client"]: float(each["epsilon"]) for each in spent})


def lines(view: View) -> list[str]:
    """The whole of it, for ``run show``."""
    run, now = view.run, view.round
    shown = [
        f"run        {run['name']} ({run['id']})",
        f"state      {run['state']}" + (f": {view.why}" if view.why else ""),
        f"rounds     {run['rounds_published']} of {run['rounds_planned']} published",
        f"epsilon    {view.paid:.4g} paid of {run['epsilon_planned']:.4g} planned",
        f"created    {moment(run['created_at'])} UTC",
    ]
    if view.premise:
        shown.insert(-1, f"premise    {view.premise}")
    if now is not None:
        until = f", until {moment(now['deadline'])} UTC" if now["deadline"] else ""
        shown.append(
            f"round      {now['number']} ({now['kind']}), {now['state']}: "
            f"{now['updates_accepted']} updates, quorum {now['quorum']}{until}"
        )
        if not view.ended and now["missing_clients"]:
            shown.append(f"missing    {_some(now['missing_clients'])}")
    standing = {} if now is None else {each["client"]: each for each in now["clients"]}
    return shown + [
        f"client     {_client(seat, standing.get(seat['client']), view)}" for seat in run["seats"]
    ]


def _client(seat: JsonObject, member: JsonObject | None, view: View) -> str:
    paid = view.epsilon.get(seat["client"])
    parts = [f"{seat['client']}: {seat['state']}, plan {seat['consent']}"]
    if member is not None and not view.ended:
        parts.append(str(member["standing"]))
    if paid is not None:
        parts.append(f"epsilon {paid:.4g}")
    why = seat["why"] or ("" if member is None or view.ended else member["why"])
    return ", ".join(parts) + (f" ({why})" if why else "")


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def follow(coordinator: CoordinatorClient, run_id: str, *, every_s: float, as_json: bool) -> str:
    """Until the run has ended; its last state. An outage of the coordinator is waited out."""
    looks = _looks(coordinator, run_id, every_s)
    if as_json or not sys.stdout.isatty():
        return _plainly(looks, as_json=as_json)
    return _live(looks)


def _looks(
    coordinator: CoordinatorClient, run_id: str, every_s: float
) -> Iterator[tuple[View | None, str]]:
    """(what was seen last, what is wrong with the connection), again and again."""
    view: View | None = None
    while True:
        trouble = ""
        try:
            view = look(coordinator, run_id, view)
        except Unreachable as error:
            trouble = f"{error.message} Trying again."
        yield view, trouble
        if view is not None and view.ended:
            return
        time.sleep(every_s)


def _plainly(looks: Iterator[tuple[View | None, str]], *, as_json: bool) -> str:
    """A line whenever something has changed."""
    said, state = "", ""
    for view, trouble in looks:
        if trouble:
            if trouble != said:
                typer.echo(f"fedhypevae: {trouble}", err=True)
            said = trouble
            continue
        if view is None:
            continue
        state = str(view.run["state"])
        line = json.dumps(_facts(view)) if as_json else printable(one_line(view))
        if line != said:
            typer.echo(line)
            sys.stdout.flush()
        said = line
    return state


def _facts(view: View) -> dict[str, Any]:
    now = view.round or {}
    return {
        "run": view.run["name"],
        "state": view.run["state"],
        "why": view.why,
        "rounds_published": view.run["rounds_published"],
        "rounds_planned": view.run["rounds_planned"],
        "round": now.get("number"),
        "round_state": now.get("state"),
        "updates": now.get("updates_accepted"),
        "quorum": now.get("quorum"),
        "missing": now.get("missing_clients", []),
        "deadline": now.get("deadline"),
        "epsilon": view.epsilon,
        "epsilon_planned": view.run["epsilon_planned"],
        "views": view.run.get("views", []),
    }


def one_line(view: View) -> str:
    run, now = view.run, view.round
    parts = [f"{run['name']} {run['state']}", f"{run['rounds_published']}/{run['rounds_planned']}"]
    if now is not None and not view.ended:
        parts.append(f"round {now['number']} {now['state']}, {now['updates_accepted']} updates")
    parts.append(view.cost)
    return "  ".join(parts) + (f"  {view.why}" if view.why else "")


def _live(looks: Iterator[tuple[View | None, str]]) -> str:
    """On a terminal: drawn in place, and left as it was last."""
    from rich.console import Console
    from rich.live import Live

    state = ""
    with Live(console=Console(highlight=False), auto_refresh=False, transient=False) as screen:
        for view, trouble in looks:
            if view is not None:
                state = str(view.run["state"])
            screen.update(drawn(view, trouble), refresh=True)
    return state


def drawn(view: View | None, trouble: str) -> Any:
    """What a terminal shows: a bar over the rounds, the open round, each client."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if view is None:
        return Text(trouble or "asking the coordinator", style="yellow")
    run, now = view.run, view.round
    colour = {"completed": "green", "failed": "red", "cancelled": "red", "paused": "yellow"}
    head = Text.assemble(
        (printable(run["name"]), "bold"),
        "  ",
        (run["state"], colour.get(run["state"], "cyan")),
        f"  {run['rounds_published']} of {run['rounds_planned']} rounds  {view.cost}",
    )
    bar = ProgressBar(total=max(run["rounds_planned"], 1), completed=run["rounds_published"])
    parts: list[Any] = [head, bar]
    if view.premise:
        parts.append(Text(view.premise, style="dim"))
    if now is not None and not view.ended:
        until = f", until {moment(now['deadline'])} UTC" if now["deadline"] else ""
        parts.append(
            Text(
                f"round {now['number']} ({now['kind']}) {now['state']}: "
                f"{now['updates_accepted']} updates, quorum {now['quorum']}{until}"
            )
        )
    if view.why:
        parts.append(Text(printable(view.why), style="dim"))
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
    for title in ("client", "place", "plan", "this round", "epsilon", ""):
        table.add_column(title)
    standing = {} if now is None else {each["client"]: each for each in now["clients"]}
    for seat in run["seats"][:_SHOWN]:
        member = standing.get(seat["client"], {})
        paid = view.epsilon.get(seat["client"])
        cells = (
            seat["client"],
            seat["state"],
            seat["consent"],
            "" if view.ended else member.get("standing", ""),
            "" if paid is None else f"{paid:.4g}",
            seat["why"] or ("" if view.ended else member.get("why", "")),
        )
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    parts.append(table)
    if len(run["seats"]) > _SHOWN:
        parts.append(Text(f"and {len(run['seats']) - _SHOWN} more clients", style="dim"))
    if trouble:
        parts.append(Text(trouble, style="yellow"))
    return Group(*parts)
