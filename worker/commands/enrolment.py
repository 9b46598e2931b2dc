"""A site comes in by a one-time code, and replaces its token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.commands.base import prepare, stop, told


def enrol_site(
    code: Annotated[
        str,
        typer.Argument(help="The one-time code; asked for if it is left out.", show_default=False),
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="Keep the token there, not in the state folder."),
    ] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0.0, help="Seconds to wait for the approval.")
    ] = 900.0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a token that is there already.")
    ] = False,
) -> None:
    """Come in with a one-time code of the coordinator's administrator.

    Needs FHV_COORDINATOR_URL and, unless --token-file is given, FHV_SITE_CONFIG. The token is made
    and kept here; the administrator compares a fingerprint and approves. Exit 1 while that has not
    happened: the same command goes on.
    """
    from worker.agent import enrol
    from worker.agent.site import LEDGER_FILE, Site
    from worker.agent.sum_identity import register_softly
    from worker.client import CoordinatorClient
    from worker.credentials import TokenFile

    with told():
        settings = prepare()
        site = None if settings.site_config is None else settings.require_site()
        if token_file is not None:
            keep = TokenFile(token_file.expanduser().absolute())
        else:
            found = settings.token_kept(None if site is None else site.state_dir)
            if found is None:
                stop("say where the token is to be kept: set FHV_SITE_CONFIG or --token-file.")
            keep = found
        code = code or typer.prompt("Code", hide_input=True)
        with CoordinatorClient(settings.coordinator_url, None) as coordinator:
            client = enrol.enrol(
                coordinator,
                code,
                keep,
                wait_s=wait_s,
                replace=replace,
                say=lambda line: print(line, flush=True),
            )
    print(f"Enrolled as {client['name']!r} (id {client['id']}). The token is in {keep.path}.")
    wrong = [f"{settings.site_config} is not there"] if site is None else []
    wrong += [] if site is None else enrol.differences(client, site)
    if wrong:
        print(f"site.toml is not ready yet: {'; '.join(wrong)}. It needs:\n")
        print(enrol.as_table(client))
    else:
        print("Next: fedhypevae agent check, then fedhypevae agent run.")
    if site is not None and not wrong and (site.state_dir / LEDGER_FILE).exists():
        # A state folder is not made here: it may be that a backup is about to be restored into it.
        with (
            told(),
            CoordinatorClient(settings.coordinator_url, keep) as coordinator,
            Site.open(site.state_dir) as opened,
        ):
            register_softly(coordinator, client, opened)


def rotate_token(
    overlap_s: Annotated[
        float,
        typer.Option("--overlap", min=0.0, help="Seconds during which the old one still works."),
    ] = 3_600.0,
) -> None:
    """Replace this site's token. Agents that run read the new one by themselves.

    An agent does this by itself when a third of the token's life is left.
    """
    from worker.agent.renewal import rotate
    from worker.client import CoordinatorClient

    with told():
        settings = prepare()
        site = None if settings.site_config is None else settings.require_site()
        keep = settings.token_kept(None if site is None else site.state_dir)
        if settings.token is not None or keep is None:
            stop(
                "the token is in FHV_TOKEN, where it cannot be replaced: keep it in a file and set "
                "FHV_TOKEN_FILE."
            )
        with CoordinatorClient(settings.coordinator_url, keep) as coordinator:
            made = rotate(
                coordinator,
                keep,
                lambda token: CoordinatorClient(settings.coordinator_url, token),
                overlap_s=overlap_s,
            )
    ends = made.get("expires_at")
    print(
        f"{keep.path}: the new token is accepted {f'until {ends}' if ends else 'without an end'}."
    )
