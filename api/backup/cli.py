"""Commands ``fedhypevae backup`` and ``fedhypevae restore``. Exit: 0 done, 1 failed, 2 usage."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from api import audit
from api.backup import making, restoring
from api.backup.manifest import Manifest
from api.config import Settings
from api.console import first_line, run, settings, stop, transaction
from core.errors import DomainError

backup_app = typer.Typer(
    add_completion=False, help="Copy the coordinator's database and objects into a folder."
)
restore_app = typer.Typer(
    add_completion=False, help="Put a backup into an empty database and its object store."
)


async def _record(found: Settings, kind: str, manifest: Manifest) -> None:
    detail = manifest.model_dump(mode="json", include={"made_at", "dump_sha256", "ledger_entries"})
    async with transaction(found) as (session, _):
        await audit.record(session, kind, audit.CONSOLE, **detail)


def _told(error: DomainError) -> None:
    stop(" ".join(part for part in (error.message, error.mend) if part))


@backup_app.command()
def backup(
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A new folder.")],
    objects: Annotated[
        bool,
        typer.Option("--objects/--no-objects", help="Leave out a store that is kept elsewhere."),
    ] = True,
) -> None:
    """Copy the coordinator's database and objects into a folder. The coordinator may be at work.

    The token pepper is NOT in it: keep it elsewhere, a backup is worth nothing without it.
    """
    found = settings(Settings)
    try:
        made = making.make(
            destination,
            database_url=found.database_url,
            store_url=found.object_store_url,
            pepper=found.pepper,
            objects=objects,
        )
    except DomainError as error:
        _told(error)
        return
    run(_record(found, "backup-made", made))
    kept = "no objects" if made.objects is None else f"{made.objects} objects"
    print(
        f"{destination}: {made.runs} runs, {made.clients} clients, {made.ledger_entries} ledger "
        f"entries, {kept}; schema {made.migration}"
    )


@restore_app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder of 'backup'.")],
) -> None:
    """Put a backup into an empty database and its object store. Stop the coordinator first.

    What happened since is unknown to it then: tokens revoked since are valid again, and its ledger
    lacks what was spent since. Sites know, and refuse to spend it twice.
    """
    found = settings(Settings)
    try:
        put = restoring.restore(
            source,
            database_url=found.database_url,
            store_url=found.object_store_url,
            pepper=found.pepper,
        )
    except DomainError as error:
        _told(error)
        return
    except SQLAlchemyError as error:
        stop(f"restored, but the schema was not brought up to date: {first_line(error)}")
    run(_record(found, "database-restored", put))
    print(
        f"restored as of {put.made_at:%Y-%m-%d %H:%M:%S} UTC, {put.ledger_entries} ledger entries"
    )
    for line in (
        "what was revoked or erased since then is to be revoked and erased again;",
        "ask every site for 'fedhypevae agent verify-ledger' before you start another run",
    ):
        print(line, file=sys.stderr)
