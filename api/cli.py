"""Commands of the coordinator's machine: ``serve``, ``token``, ``keys``, ``db``."""

from __future__ import annotations

import socket
import sys
from types import FrameType
from typing import Annotated, Any
from uuid import UUID

import typer
import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from api import audit, migration, tokens
from api.config import Secrets, Settings, SettingsError, database_url
from api.connections import HeadLimits, guarded
from api.console import first_line, run, settings, stop, transaction
from api.context import Context
from api.db.engine import Database
from api.observability import configure
from api.receipts import keys
from core.errors import DomainError

_STOP_S = 10

serve_app = typer.Typer(add_completion=False, help="Run the coordinator (HTTP API).")
keys_app = typer.Typer(add_completion=False, no_args_is_help=True, help="Keys that sign receipts.")
token_app = typer.Typer(add_completion=False, no_args_is_help=True, help="Bearer tokens.")
db_app = typer.Typer(add_completion=False, no_args_is_help=True, help="The database's schema.")


class _Server(uvicorn.Server):
    """Tells long polls to end, so that a stop does not wait for them."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        context = self.config.app.state.context  # type: ignore[union-attr]
        if isinstance(context, Context):
            context.hub.close()
        super().handle_exit(sig, frame)


def _listen(host: str, port: int) -> socket.socket:
    """The socket, bound now: a port that is taken is one clear line, not a traceback."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        stop(f"cannot listen on {host}:{port}: {error.strerror or error}", 2)
    return listener


def uvicorn_options(found: Settings) -> dict[str, Any]:
    """How the application is served."""
    heads = HeadLimits(found.head_timeout_s, found.max_head_bytes, found.max_connections)
    return {
        "host": found.host,
        "port": found.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": bool(found.proxies),
        "forwarded_allow_ips": found.proxies,
        "timeout_graceful_shutdown": _STOP_S,
        "http": guarded(heads),
        "ws": "none",
    }


@serve_app.callback(invoke_without_command=True)
def serve(
    host: Annotated[str | None, typer.Option(help="Address (FHV_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port (FHV_PORT).", min=1, max=65_535)] = None,
) -> None:
    """Serve the API until SIGTERM or Ctrl-C. Exit code 2: the port is taken."""
    found = settings(Settings, host=host, port=port)
    listener = _listen(found.host, found.port)
    try:
        state = migration.state(found.database_url)
    except SQLAlchemyError as error:
        listener.close()
        stop(f"the database cannot be reached: {first_line(error)}")
    if not state.usable:
        listener.close()
        stop(
            f"the database is at migration {state.found or 'none'}, this program needs "
            f"{state.head}: "
            + ("run the newer program." if state.newer else "run 'fedhypevae db upgrade'.")
        )
    # Here, because it takes seconds that the other commands need not pay.
    from api.app import create_app

    configure(found.log_level)
    config = uvicorn.Config(create_app(found), **uvicorn_options(found))
    _Server(config).run(sockets=[listener])


@token_app.command("create")
def token_create(
    scope: Annotated[str, typer.Option(help="admin, worker, scientist, auditor or client.")],
    label: Annotated[str, typer.Option(help="Whose it is.")],
    client: Annotated[str | None, typer.Option(help="Client's name, for scope client.")] = None,
    days: Annotated[float | None, typer.Option(help="Expires after so many days.")] = None,
) -> None:
    """Make a token and print it, once, alone on standard output."""
    found = settings(Secrets)
    try:
        wanted = tokens.NewToken.model_validate(
            {
                "scope": scope,
                "label": label,
                "client": client,
                "expires_in_s": None if days is None else days * 86_400,
            }
        )
    except ValidationError as error:
        stop("; ".join(f"--{item['loc'][0]}: {item['msg']}" for item in error.errors()), 2)

    async def make() -> tokens.TokenMade:
        async with transaction(found) as (session, database):
            return await tokens.make(session, database, audit.CONSOLE, found.pepper, wanted)

    made = run(make())
    print(made.token)
    print(f"token {made.id} of scope {made.scope}; it is not shown again", file=sys.stderr)


@token_app.command("list")
def token_list() -> None:
    """All tokens, without their texts."""
    found = settings(Secrets)

    async def read() -> list[tokens.TokenView]:
        database = Database(found.database_url, pool_size=2)
        try:
            items: list[tokens.TokenView] = []
            after: UUID | None = None
            while True:
                async with database.read() as session:
                    page, after = await tokens.page(session, 200, after)
                items += page
                if after is None:
                    return items
        finally:
            await database.close()

    for item in run(read()):
        state = "revoked" if item.revoked_at else f"expires {item.expires_at or 'never'}"
        print(f"{item.id}  {item.scope:<9}  {state}  {item.label}")


@token_app.command("revoke")
def token_revoke(token_id: Annotated[UUID, typer.Argument(help="Its id (token list).")]) -> None:
    """From now on the token is refused."""
    found = settings(Secrets)

    async def change() -> None:
        async with transaction(found) as (session, database):
            await tokens.revoke(session, database, audit.CONSOLE, token_id)

    run(change())
    print(f"token {token_id} is revoked")


def _shown(key: keys.KeyView) -> str:
    state = "revoked" if key.revoked_at else "retired" if key.retired_at else "signs"
    return f"{key.id}  {state:<8}  made {key.created_at:%Y-%m-%d %H:%M} UTC  {key.public}"


async def _all_keys(secrets: Secrets) -> list[keys.KeyView]:
    async with transaction(secrets) as (session, _):
        return await keys.views(session)


@keys_app.command("list")
def keys_list() -> None:
    """All keys: id, state, age, public half. The first one is made with the first receipt."""
    for key in run(_all_keys(settings(Secrets))):
        print(_shown(key))


@keys_app.command("export")
def keys_export() -> None:
    """The public keys as JSON on standard output: what 'fedhypevae verify --keys' reads."""
    found = run(_all_keys(settings(Secrets)))
    print(keys.KeysView(items=found).model_dump_json(indent=2))


@keys_app.command("rotate")
def keys_rotate() -> None:
    """A new key signs from now on; what older ones have signed stays valid.

    Replicas take it over within seconds.
    """
    found = settings(Secrets)

    async def change() -> str:
        async with transaction(found) as (session, database):
            return (await keys.rotate(session, database, audit.CONSOLE, found.pepper)).id

    print(f"key {run(change())} signs from now on")


@keys_app.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(help="Its id (keys list).")]) -> None:
    """Nothing that this key has signed is valid any more: for a key that others may have had."""
    found = settings(Secrets)

    async def change() -> None:
        async with transaction(found) as (session, database):
            await keys.revoke(session, database, audit.CONSOLE, found.pepper, key_id)

    run(change())
    print(f"key {key_id} is revoked; receipts that it signed can be fetched again, signed anew")


def _database_url() -> str:
    try:
        return database_url()
    except SettingsError as error:
        stop(str(error))


@db_app.command("upgrade")
def db_upgrade(revision: Annotated[str, typer.Argument(help="Target.")] = "head") -> None:
    """Apply the migrations."""
    url = _database_url()
    try:
        migration.upgrade(url, revision)
        state = migration.state(url)
    except DomainError as error:
        stop(str(error))
    except SQLAlchemyError as error:
        stop(f"the migration was not applied: {first_line(error)}")
    print(f"the database is at migration {state.found}")
    if state.newer:
        print(f"of a newer program; this one ({state.head}) can serve it", file=sys.stderr)


@db_app.command("downgrade")
def db_downgrade(revision: Annotated[str, typer.Argument(help="Target, e.g. 0001.")]) -> None:
    """Undo migrations. Tables that a migration made are dropped WITH THEIR ROWS."""
    url = _database_url()
    try:
        migration.downgrade(url, revision)
        state = migration.state(url)
    except SQLAlchemyError as error:
        stop(f"the migration was not undone: {first_line(error)}")
    print(f"the database is at migration {state.found or 'none'}")


@db_app.command("current")
def db_current() -> None:
    """Say which migration the database is at. Exit code 1 unless this program can serve it."""
    try:
        state = migration.state(_database_url())
    except SQLAlchemyError as error:
        stop(f"the database cannot be reached: {first_line(error)}")
    print(f"at {state.found or 'none'}, newest {state.head}")
    if not state.usable:
        raise typer.Exit(1)
