"""Keys of secure sums: this site's own, and those of the other clients of a run."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from worker.commands.base import ClientOption, JsonOption, app, chosen, connected, prepare, told

if TYPE_CHECKING:
    from worker.agent.sum_identity import Offered

identity_app = app("Keys by which sites know one another in secure sums.")


@identity_app.command("show")
def show(client: ClientOption = None, as_json: JsonOption = False) -> None:
    """This site's public keys and their fingerprints, to be read to the other sites' people."""
    from core.secagg.identity import fingerprint
    from worker.agent.site import Site
    from worker.agent.sum_identity import key_of

    with told():
        config = prepare().require_site()
        with Site.open(config.state_dir) as site:
            keys = {each.name: key_of(site, each.name) for each in chosen(config, client)}
    if as_json:
        shown = [
            {"client": name, "key": key, "fingerprint": fingerprint(key)}
            for name, key in keys.items()
        ]
        print(json.dumps({"keys": shown}, indent=2))
        return
    for name, key in keys.items():
        print(f"{name}\n  key          {key}\n  fingerprint  {fingerprint(key)}")


@identity_app.command("register")
def register() -> None:
    """Tell the coordinator the key of the client whose token this is. 'agent run' does it, too; a
    managed client's key is given to the administrator."""
    from worker.agent.identity import configured
    from worker.agent.site import Site
    from worker.agent.sum_identity import key_of
    from worker.agent.sum_identity import register as tell

    with told(), connected() as (_, config, coordinator), Site.open(config.state_dir) as site:
        me = coordinator.client("me")
        name = configured(me, config).name
        tell(coordinator, me, site)
        print(f"{name}: the coordinator has the key {key_of(site, name)}")


@identity_app.command("peers")
def peers(
    run: Annotated[str, typer.Argument(help="The run's id.")],
    client: ClientOption = None,
    trust: Annotated[
        list[str] | None,
        typer.Option("--trust", help="NAME=FINGERPRINT, as that client's people say it."),
    ] = None,
    everybody: Annotated[
        bool, typer.Option("--yes", help="Pin all of them; every fingerprint was compared.")
    ] = False,
) -> None:
    """Pin the keys of a run's other clients, once their fingerprints were compared by telephone.

    Without --trust or --yes it asks, client by client."""
    from worker.agent import peers as pinned
    from worker.agent.sum_identity import offered, trusted

    given = dict(_pair(text) for text in trust or ())
    with told(), connected() as (_, config, coordinator):
        for each in chosen(config, client):
            found = offered(coordinator, run, each)
            new = [peer for peer in found if not peer.pinned]
            keys = trusted(found, given, everybody=everybody)
            if not given and not everybody:
                keys = {peer.client: peer.key for peer in new if _asked(each.name, peer)}
            pinned.pin(each, keys)
            left = sorted(peer.client for peer in new if peer.client not in keys)
            print(f"{each.name}: {len(found) - len(left)} of {len(found)} keys pinned")
            if left:
                print(f"  not pinned: {', '.join(left)}", file=sys.stderr)
                raise typer.Exit(1)


def _asked(name: str, peer: Offered) -> bool:
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "there is no terminal to ask at; give --trust NAME=FINGERPRINT, or --yes"
        )
    return typer.confirm(f"{name}: is {peer.fingerprint} what {peer.client}'s people read to you?")


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise typer.BadParameter(f"{text!r} is not NAME=FINGERPRINT", param_hint="--trust")
    return name, value
