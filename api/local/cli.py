"""``fedhypevae up``, ``down`` and ``status``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from api.console import stop
from api.local.folder import Folder, FolderError, Record, default_folder

up_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
down_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
status_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_ROOT = Path(__file__).resolve().parents[2]
_PORT = 8000
_STOP_S = 60.0
_TAIL_LINES = 15

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder", help="Data, logs and secrets (FHV_HOME; ~/.local/state/fedhypevae if absent)."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document.")]


def _folder(given: Path | None) -> Folder:
    return Folder(given or default_folder())


@up_app.command()
def up(
    folder: FolderOption = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_535, help="The coordinator's (FHV_PORT); the same again if absent."
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="A site.toml: also train for its managed clients."
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay until Ctrl-C, and say what happens.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start all services on this machine: Postgres, Valkey, coordinator, workers.

    They go on in the background, and are started again if they end; 'fedhypevae down' stops them.
    Where they run already, nothing changes. FHV_DATABASE_URL, FHV_BROKER_URL and
    FHV_OBJECT_STORE_URL name servers of your own; other FHV_ settings reach the coordinator.

    Exit codes: 0 they are ready, 1 failed, 2 wrong usage, or the port is taken.

    fedhypevae up

    fedhypevae up --port 8100 --folder ~/fhv --site site.toml
    """
    home = _folder(folder)
    try:
        home.make()
        if foreground:
            _keep(home, _options(home, port, site))
        elif home.keeper() is None or home.record().state in ("stopping", "stopped", "failed"):
            _start(home, port, site)
        record = _until_started(home)
    except FolderError as error:
        stop(str(error))
    if port not in (None, record.port):
        stop(f"the services run on port {record.port} already; call 'fedhypevae down' first.", 2)
    if as_json:
        print(json.dumps(_facts(home, record), indent=2))
        return
    print(f"API                     {record.url} (documentation: {record.url}/docs)")
    print(f"administrator's token   {home.admin_token}")
    print(f"logs                    {home.logs}")
    print()
    print(f"export FHV_COORDINATOR_URL={record.url}")
    print(f'export FHV_TOKEN="$(cat {home.admin_token})"')


def _options(home: Folder, port: int | None, site: Path | None) -> Any:
    from api.local.environments import Options

    chosen = port or int(os.environ.get("FHV_PORT") or 0) or home.record().port or _PORT
    return Options(port=chosen, site=None if site is None else site.resolve())


def _keep(home: Folder, options: Any) -> None:
    """In this process, until a signal."""
    # Here, because it takes a second that the other commands need not take.
    from api.local.keeper import keep
    from core.processes import ServiceError, Stopped

    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)
        if line == "ready":
            print(f"          API: http://127.0.0.1:{options.port}", flush=True)
            print(f"          administrator's token: {home.admin_token}", flush=True)

    with home.held() as ours:
        if not ours:
            stop(f"the services of {home.path} run already; 'fedhypevae down' stops them.")
        try:
            keep(home, options, say)
        except ServiceError as error:
            stop(str(error), home.record().code or 1)
        except Stopped as stopped:
            print(f"{stopped}: every service has been stopped.")
            raise typer.Exit(0) from None


def _start(home: Folder, port: int | None, site: Path | None) -> None:
    """In a process of its own that outlives this one."""
    _wait(lambda: home.keeper() is None, _STOP_S)
    home.write(home.record().having(state="starting", why="", code=0, services={}))
    arguments = ["--foreground", "--folder", str(home.path)]
    arguments += [] if port is None else ["--port", str(port)]
    arguments += [] if site is None else ["--site", str(site.resolve())]
    with (home.logs / "up.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "api.local", *arguments],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    taken = _wait(lambda: home.keeper() is not None or child.poll() is not None, _STOP_S)
    if not taken or (child.poll() not in (None, 0) and home.keeper() is None):
        record = home.record()
        tail = "\n".join((home.logs / "up.log").read_text(errors="replace").splitlines()[-8:])
        stop(record.why or f"the services did not start:\n{tail}", record.code or 1)


def _until_started(home: Folder) -> Record:
    """The record once everything is ready. Ctrl-C stops what was begun."""
    try:
        while True:
            running, record = home.keeper() is not None, home.record()
            if record.state == "ready" and running:
                return record
            if not running:
                said = home.record().why or "they ended before they were ready"
                stop(f"{said} (log: {home.logs / 'up.log'})", home.record().code or 1)
            time.sleep(0.1)
    except KeyboardInterrupt:
        _stop_keeper(home)
        stop("stopped.", 1)


def _wait(true: Any, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _stop_keeper(home: Folder) -> bool:
    """Ask who runs the services to stop them, and wait for it; False if nobody runs them."""
    pid = home.keeper()
    if pid is None:
        return False
    _wait(lambda: home.keeper() != 0, 2.0)
    pid = home.keeper()
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if pid and not _wait(lambda: home.keeper() is None, _STOP_S):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _wait(lambda: home.keeper() is None, 5.0)
    if pid:  # it lets go of the folder a moment before it ends
        _wait(lambda: not psutil.pid_exists(pid), 10.0)
    return True


@down_app.command()
def down(
    folder: FolderOption = None,
    delete_data: Annotated[
        bool,
        typer.Option(
            "--delete-data", help="Also delete database, store, logs and tokens, for good."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop all services on this machine; data stay, and 'fedhypevae up' goes on with them.

    Exit codes: 0 nothing runs any more, 1 failed or not confirmed.

    fedhypevae down

    fedhypevae down --delete-data
    """
    from api.local import leftovers

    home = _folder(folder)
    if not home.path.is_dir():
        print(f"nothing runs: {home.path} does not exist")
        return
    if delete_data and not yes:
        typer.confirm(f"Delete database, store, logs and tokens in {home.path}?", abort=True)
    try:
        home.make()
        ran = _stop_keeper(home)
        with home.held() as ours:
            if not ours:
                stop("somebody is starting the services: call 'fedhypevae down' again.")
            ran |= bool(leftovers.end(home))
            if leftovers.postgres_runs(home):
                leftovers.stop_postgres(home)
                ran = True
            record = home.record()
            if record.state != "failed":
                home.write(record.having(state="stopped", services={}))
            if delete_data:
                home.delete()
    except FolderError as error:
        stop(str(error))
    print("stopped" if ran else "nothing ran")
    if delete_data:
        print(f"deleted what was in {home.path}")
        if "given" in (record.database, record.broker):
            print("servers that were given by FHV_... keep what is in them")


def _facts(home: Folder, record: Record) -> dict[str, Any]:
    return {
        "folder": str(home.path),
        "state": record.state,
        "url": record.url,
        "admin_token": str(home.admin_token),
        "logs": str(home.logs),
        "database": record.database,
        "broker": record.broker,
        "store": record.store,
        "why": record.why,
        "services": {
            name: {"pid": each.pid, "restarts": each.restarts}
            for name, each in record.services.items()
        },
    }


@status_app.command()
def status(folder: FolderOption = None, as_json: JsonOption = False) -> None:
    """Do the services on this machine run, and is the coordinator ready?

    Exit codes: 0 ready, 1 not.

    fedhypevae status --json
    """
    from api.local.ports import readiness

    home = _folder(folder)
    try:
        record = home.record()
    except FolderError as error:
        stop(str(error))
    running = home.keeper() is not None
    if not running and record.state in ("starting", "ready", "stopping"):
        record = record.having(state="failed", why="whoever ran the services was killed")
    ready, said = readiness(record.port) if running and record.state == "ready" else (False, "")
    if as_json:
        print(json.dumps({**_facts(home, record), "ready": ready, "readiness": said}, indent=2))
    else:
        print(f"{record.state:<9} {home.path}" + (f": {record.why}" if record.why else ""))
        if record.state == "ready":
            print(f"{'ready' if ready else 'NOT READY':<9} {record.url} {said}")
        for name, service in record.services.items() if running else ():
            again = f", started again {service.restarts} times" if service.restarts else ""
            print(f"{'runs':<9} {name} (process {service.pid}{again})")
        if not running:
            print("'fedhypevae up' starts the services.")
    if not ready:
        raise typer.Exit(1)
