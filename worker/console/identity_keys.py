"""``fedhypevae admin clients identity-key``: by which key sites know a client in secure sums."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from core.secagg.identity import fingerprint
from core.secagg.messages import Key
from core.terminal import printable
from worker.console.base import YesOption, confirmed, connected, named
from worker.paging import every


def identity_key(
    client: Annotated[str, typer.Argument(help="Its name or id.")],
    key: Annotated[
        str | None,
        typer.Argument(help="Of a managed client: what 'fedhypevae agent identity show' prints."),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Forget it, so that the site can register a new one.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Set a managed client's key, as its people read it out, or remove any client's.

    fedhypevae admin clients identity-key ward-7 5f0c...
    """
    if (key is None) != remove:
        raise typer.BadParameter("give a key, or --remove", param_hint="KEY")
    if key is not None and not _is_key(key):
        raise typer.BadParameter("a key has 64 hexadecimal digits", param_hint="KEY")
    with connected() as coordinator:
        found = named(every(coordinator.clients), client, "client")
        name = printable(found["name"])
        if key is None:
            confirmed(f"Remove the key of {name}? Other sites then compare a new one.", yes)
            coordinator.remove_identity_key(str(found["id"]))
            typer.echo(f"client {name} has no key for secure sums")
            return
        confirmed(f"Is {fingerprint(key)} what the people of {name} read to you?", yes)
        coordinator.put_identity_key(str(found["id"]), key)
    typer.echo(f"client {name} is known by {fingerprint(key)}")


def _is_key(text: str) -> bool:
    try:
        TypeAdapter(Key).validate_python(text)
    except ValidationError:
        return False
    return True
