"""``fedhypevae admin enrolments``: sites come in by a one-time code, and somebody lets them in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from core.terminal import printable
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.console.base import (
    JsonOption,
    YesOption,
    app,
    at_terminal,
    confirmed,
    connected,
    moment,
    named,
    show_json,
    show_list,
    stop,
)
from worker.paging import every

enrolments_app = app("Enrolments: one-time codes, and the sites that have used one.")

_DAY_S = 86_400.0
State = Literal["open", "waiting", "approved", "refused", "withdrawn", "expired"]
EnrolmentArgument = Annotated[
    str, typer.Argument(metavar="ENROLMENT", help="The client's name, or the enrolment's id.")
]


@enrolments_app.command("issue")
def issue(
    name: Annotated[str, typer.Argument(help="The client's name in plans and mixtures.")],
    space: Annotated[str | None, typer.Option(help="The embedding space of its records.")] = None,
    site: Annotated[str | None, typer.Option(help="Which institution it is of.")] = None,
    population: Annotated[
        str | None, typer.Option(help="Whose records; clients over one share one budget.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="The budget: over everything, for ever.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="The budget's delta, such as 1e-5.")] = None,
    unit: Annotated[
        str | None, typer.Option(help="What is protected: record (unless given) or patient.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="A label that mixtures may name.")] = None,
    existing: Annotated[
        bool, typer.Option("--existing", help="It is enrolled, and its site needs a new token.")
    ] = False,
    days: Annotated[float, typer.Option(help="The code must be used in so many days.")] = 7.0,
    token_days: Annotated[
        float, typer.Option(help="Life of the site's token; its agent renews it.")
    ] = 180.0,
    automatic: Annotated[
        bool,
        typer.Option(
            "--automatic",
            help="Whoever has the code is in, if the coordinator's policy allows it.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Issue a one-time code and print it, once, alone on standard output.

    fedhypevae admin enrolments issue ward-7 --space digits --site st-anna
    --population st-anna/all --unit patient --epsilon 8 --delta 1e-5

    fedhypevae admin enrolments issue ward-7 --existing
    """
    needed: dict[str, Any] = {
        "space": space,
        "site": site,
        "population": population,
        "epsilon": epsilon,
        "delta": delta,
    }
    wanted = None if existing else _new_client(name, needed, unit, domain)
    if existing and (given := _given({**needed, "unit": unit, "domain": domain})):
        raise typer.BadParameter(
            f"a client that is enrolled keeps what it has: leave {', '.join(given)} out",
            param_hint="--existing",
        )
    with connected() as coordinator:
        made = coordinator.issue_code(
            wanted,
            existing=name if existing else None,
            automatic=automatic,
            expires_in_s=days * _DAY_S,
            token_days=token_days,
        )
    if as_json:
        show_json(made)
        return
    typer.echo(made["code"])
    for line in _next_steps(made, coordinator.base_url):
        typer.echo(printable(line), err=True)


def _new_client(
    name: str, needed: dict[str, Any], unit: str | None, domain: str | None
) -> JsonObject:
    """The client that is to be made; wrong usage if something is not said."""
    lacking = [f"--{key}" for key, value in needed.items() if value is None]
    if lacking:
        raise typer.BadParameter(
            "a new client needs it (one that is enrolled: --existing)",
            param_hint=", ".join(lacking),
        )
    client: JsonObject = {
        "name": name,
        "space": needed["space"],
        "site": needed["site"],
        "population": needed["population"],
        "unit": unit or "record",
        "managed": False,
        "budget": {"epsilon": needed["epsilon"], "delta": needed["delta"]},
    }
    return client if domain is None else {**client, "domain": domain}


def _given(options: dict[str, Any]) -> list[str]:
    return [f"--{key}" for key, value in options.items() if value is not None]


def _next_steps(made: JsonObject, url: str) -> list[str]:
    """What to do with the code; it is not among the words, which stay on the screen."""
    after = (
        "whoever has it is in at once"
        if made["approval"] == "automatic"
        else f"then here: fedhypevae admin enrolments approve {made['name']}"
    )
    return [
        f"the code of {made['name']}, not shown again; until {moment(made['expires_at'])} UTC",
        f"at the site: FHV_COORDINATOR_URL={url} fedhypevae agent enrol (it asks for the code)",
        after,
    ]


@enrolments_app.command("list")
def list_(
    state: Annotated[
        State | None, typer.Option(help="Only these; waiting: they await your word.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """All enrolments, oldest first: who has used which code, from where, and when.

    fedhypevae admin enrolments list --state waiting
    """
    with connected() as coordinator:
        asked = {} if state is None else {"state": state}
        found = list(every(coordinator.enrolments, **asked))
    heads = ("NAME", "STATE", "FINGERPRINT", "ISSUED", "USED", "FROM", "AGENT", "ID")
    nothing = "no enrolments" if state is None else f"no enrolments are {state}"
    show_list(found, heads, _row, nothing, as_json=as_json)


def _row(enrolment: JsonObject) -> tuple[object, ...]:
    return (
        enrolment["name"],
        enrolment["state"],
        enrolment["fingerprint"],
        moment(enrolment["created_at"]),
        moment(enrolment["redeemed_at"]),
        enrolment["address"],
        enrolment["agent"],
        enrolment["id"],
    )


@enrolments_app.command("approve")
def approve(
    enrolment: EnrolmentArgument,
    fingerprint: Annotated[
        str | None,
        typer.Option(help="What the site's people have read out; asked for if it is left out."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Without --fingerprint: compare nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Let a site in whose people have told you the fingerprint that their agent shows.

    If another token was redeemed, somebody else has the code: nothing is approved, exit code 1.

    fedhypevae admin enrolments approve ward-7 --fingerprint 4F7K-92QD
    """
    with connected() as coordinator:
        found = _found(coordinator, enrolment)
        if fingerprint is None and not yes and found["state"] == "waiting":
            fingerprint = _read_out(found)
        done = coordinator.approve_enrolment(str(found["id"]), fingerprint)
    if as_json:
        show_json(done)
        return
    compared = "" if fingerprint else f"; nobody compared its fingerprint {done['fingerprint']}"
    typer.echo(printable(f"{done['name']} is in (client {done['client_id']}){compared}"))


def _read_out(found: JsonObject) -> str:
    """The fingerprint as a person types it: it is not shown here, so that nobody copies it."""
    if not at_terminal():
        stop(f"Let {found['name']} in? Nobody can answer here: give --fingerprint, or --yes.", 2)
    came = f"{found['name']}: {found['agent'] or 'an agent'}, from {found['address']}"
    typer.echo(printable(f"{came}, {moment(found['redeemed_at'])} UTC"), err=True)
    typed: str = typer.prompt("Fingerprint that the site's people read out", err=True)
    return typed


@enrolments_app.command("refuse")
def refuse(
    enrolment: EnrolmentArgument,
    why: Annotated[str, typer.Option(help="The site is told; 200 characters.")],
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Refuse a site that has used its code, or withdraw a code that nobody has used.

    fedhypevae admin enrolments refuse ward-7 --why "nobody there knows of it"
    """
    with connected() as coordinator:
        found = _found(coordinator, enrolment)
        confirmed(f"Let nobody in by the code of {found['name']}?", yes)
        done = coordinator.refuse_enrolment(str(found["id"]), why)
    if as_json:
        show_json(done)
    else:
        typer.echo(printable(f"the enrolment of {done['name']} is {done['state']}"))


def _found(coordinator: CoordinatorClient, enrolment: str) -> JsonObject:
    """By id; by name the one that is still to be decided, else the newest. A name has at most one
    of the former. Exit code 1 if there is none.
    """
    known = list(every(coordinator.enrolments))
    undecided = [each for each in known if each["state"] in ("waiting", "open")]
    for each in (*undecided, *reversed(known)):
        if enrolment in (each["id"], each["name"]):
            return each
    return named(known, enrolment, "enrolment")
