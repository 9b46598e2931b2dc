"""``fedhypevae admin``: clients, enrolments, tokens, spaces, the audit trail, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.terminal import printable
from worker.answers import JsonObject
from worker.console.audit import audit_app
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
)
from worker.console.enrolments import enrolments_app
from worker.console.identity_keys import identity_key
from worker.paging import every

admin_app = app(
    "Clients, enrolments, tokens, embedding spaces and the audit trail of a coordinator."
)
clients_app = app("Clients: who takes part, with which budget.")
tokens_app = app("Bearer tokens: made (shown once), listed, revoked.")
spaces_app = app("Embedding spaces: which frozen network made the embeddings.")
admin_app.add_typer(clients_app, name="clients")
admin_app.add_typer(tokens_app, name="tokens")
admin_app.add_typer(spaces_app, name="spaces")
admin_app.add_typer(enrolments_app, name="enrolments")
admin_app.add_typer(audit_app, name="audit")

_DAY_S = 86_400.0


# --- clients ---


@clients_app.command("list")
def clients_list(as_json: JsonOption = False) -> None:
    """All clients, oldest first.

    fedhypevae admin clients list
    """
    with connected() as coordinator:
        found = list(every(coordinator.clients))
    heads = ("NAME", "SPACE", "SITE", "UNIT", "EPSILON", "DELTA", "STATE", "ID")
    show_list(found, heads, _client_row, "no clients yet", as_json=as_json)


def _client_row(client: JsonObject) -> tuple[object, ...]:
    state = "revoked" if client["revoked_at"] else "managed" if client["managed"] else "agent"
    budget = client["budget"]
    return (
        client["name"],
        client["space"],
        client["site"],
        client["unit"],
        f"{budget['epsilon']:g}",
        f"{budget['delta']:g}",
        state,
        client["id"],
    )


@clients_app.command("create")
def clients_create(
    name: Annotated[str, typer.Argument(help="The client's name in plans and mixtures.")],
    space: Annotated[str, typer.Option(help="The embedding space of its records.")],
    site: Annotated[str, typer.Option(help="Which institution it is of.")],
    population: Annotated[
        str, typer.Option(help="Whose records; clients over one share one budget.")
    ],
    epsilon: Annotated[float, typer.Option(help="The budget: over everything, for ever.")],
    delta: Annotated[float, typer.Option(help="The budget's delta, such as 1e-5.")],
    unit: Annotated[str, typer.Option(help="What is protected: record or patient.")] = "record",
    domain: Annotated[str | None, typer.Option(help="A label that mixtures may name.")] = None,
    managed: Annotated[
        bool, typer.Option("--managed", help="A Celery worker trains for it; it has no token.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Enrol a client and print its token, once, alone on standard output.

    fedhypevae admin clients create ward-7 --space digits --site st-anna --population st-anna/all
    --unit patient --epsilon 8 --delta 1e-5 > client.token
    """
    with connected() as coordinator:
        made = coordinator.enrol_client(
            name=name,
            space=space,
            site=site,
            population=population,
            unit=unit,
            managed=managed,
            epsilon=epsilon,
            delta=delta,
            domain=domain,
        )
    if as_json:
        show_json({"client": made.client, "token": made.token})
        return
    if made.token is not None:
        typer.echo(made.token)
    shown = "it has no token" if made.token is None else "its token is not shown again"
    typer.echo(f"client {name} ({made.client['id']}) is enrolled; {shown}", err=True)


@clients_app.command("revoke")
def clients_revoke(
    client: Annotated[str, typer.Argument(help="Its name or id.")],
    why: Annotated[str, typer.Option(help="For the audit trail; 200 characters.")],
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """End a client for good: no work, no rows under its code, its tokens are refused.

    fedhypevae admin clients revoke ward-7 --why "key stolen"
    """
    with connected() as coordinator:
        found = named(every(coordinator.clients), client, "client")
        confirmed(f"Revoke the client {found['name']} for good?", yes)
        done = coordinator.revoke_client(str(found["id"]), why)
    if as_json:
        show_json(done)
    else:
        typer.echo(f"client {printable(done['name'])} is revoked")


clients_app.command("identity-key")(identity_key)


# --- tokens ---


@tokens_app.command("list")
def tokens_list(as_json: JsonOption = False) -> None:
    """All tokens, without their texts, revoked ones too.

    fedhypevae admin tokens list
    """
    with connected() as coordinator:
        found = list(every(coordinator.tokens))
    heads = ("ID", "SCOPE", "STATE", "EXPIRES", "LABEL")
    show_list(found, heads, _token_row, "no tokens yet", as_json=as_json)


def _token_row(token: JsonObject) -> tuple[object, ...]:
    state = "revoked" if token["revoked_at"] else "good"
    ends = moment(token["expires_at"]) or "never"
    return token["id"], token["scope"], state, ends, token["label"]


@tokens_app.command("create")
def tokens_create(
    scope: Annotated[str, typer.Option(help="admin, worker, scientist, auditor or client.")],
    label: Annotated[str, typer.Option(help="Whose it is, for people.")],
    client: Annotated[str | None, typer.Option(help="The client's name, for scope client.")] = None,
    days: Annotated[float | None, typer.Option(help="It expires after so many days.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it, once, alone on standard output.

    fedhypevae admin tokens create --scope scientist --label "ada's notebook" --days 90
    """
    with connected() as coordinator:
        made = coordinator.create_token(
            scope=scope,
            label=label,
            client=client,
            expires_in_s=None if days is None else days * _DAY_S,
        )
    if as_json:
        show_json(made)
        return
    typer.echo(made["token"])
    typer.echo(f"token {made['id']} of scope {scope}; it is not shown again", err=True)


@tokens_app.command("revoke")
def tokens_revoke(
    token: Annotated[str, typer.Argument(help="Its id (admin tokens list).")],
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """From now on the token is refused.

    fedhypevae admin tokens revoke 0199c0de-6666-7000-8000-000000000006 --yes
    """
    with connected() as coordinator:
        confirmed(f"Revoke the token {token}?", yes)
        done = coordinator.revoke_token(token)
    if as_json:
        show_json(done)
    else:
        typer.echo(f"token {done['id']} ({printable(done['label'])}) is revoked")


# --- spaces ---


@spaces_app.command("list")
def spaces_list(as_json: JsonOption = False) -> None:
    """All embedding spaces.

    fedhypevae admin spaces list
    """
    with connected() as coordinator:
        found = list(every(coordinator.spaces))
    heads = ("NAME", "BACKBONE", "DIM", "CLASSES", "DIGEST")
    show_list(found, heads, _space_row, "no spaces yet", as_json=as_json)


def _space_row(space: JsonObject) -> tuple[object, ...]:
    classes = len(space["classes"])
    return space["name"], space["backbone"], space["dim"], classes, space["digest"]


@spaces_app.command("register")
def spaces_register(
    file: Annotated[Path, typer.Argument(help="The space as YAML, TOML or JSON.")],
    as_json: JsonOption = False,
) -> None:
    """Register an embedding space; the same again changes nothing.

    The file has the keys name, backbone, weights_digest, preprocessing, dim and classes.

    fedhypevae admin spaces register digits.yaml
    """
    from core.federation.plan import EmbeddingSpace
    from worker.console import files

    with connected() as coordinator:
        made = coordinator.create_space(files.read(EmbeddingSpace, file, "space"))
    if as_json:
        show_json(made)
    else:
        typer.echo(f"space {printable(made['name'])} is registered ({made['digest']})")
