"""Runs the services of one folder until a signal: starts them, and starts again what has ended.

Each process gets the environment that it needs and no more: only the coordinator gets the
database's URL and the pepper.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from api import audit, auth, embedded, migration, tokens
from api.config import Secrets, SettingsError, load
from api.console import first_line
from api.db.engine import Database
from api.db.models import Token
from api.local import leftovers
from api.local.folder import MARK, Folder, Record, Service
from core.errors import DomainError
from core.processes import Child, Processes, ServiceError, ending, stop_on_signals, wait_for
from core.secret_files import SettingFileError, from_file
from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_SYNTHESIS, QUEUE_TRAIN

ROOT = Path(__file__).resolve().parents[2]
COORDINATOR = "coordinator"
_READY_S = 90.0
_LOOK_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0  # a service that ran for so long begins again with the shortest pause
# The coordinator's alone; a worker that is taken over must not find them.
_SET_HERE = ("DATABASE_URL", "BROKER_URL", "OBJECT_STORE_URL", "TOKEN_PEPPER")
_COORDINATORS = ("DATABASE_URL", "TOKEN_PEPPER", "TOKEN", "METRICS_TOKEN", "ENV", "HOST", "PORT")

Say = Callable[[str], None]


class PortTaken(ServiceError):
    """Another program listens where the coordinator shall."""


@dataclass(frozen=True)
class Options:
    """``site``: a site's TOML file; its managed clients are served, too."""

    port: int
    site: Path | None = None


def _from_files() -> None:
    """Settings of which a file was named, into the environment of this process. Raises
    ``SettingFileError``.
    """
    for name in _SET_HERE:
        if (value := from_file(name.lower(), os.environ)) is not None:
            os.environ[f"FHV_{name}"] = value
            del os.environ[f"FHV_{name}_FILE"]


def _without(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    gone = {f"FHV_{name}{end}" for name in names for end in ("", "_FILE")}
    return {name: value for name, value in environment.items() if name not in gone}


def _base(folder: Folder) -> dict[str, str]:
    """The caller's environment; one thread a process, unless the caller says otherwise."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**one, **os.environ, "PYTHONUNBUFFERED": "1", MARK: str(folder.path)}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "core.cli", *arguments]


@dataclass(frozen=True)
class _Needs:
    """Where everything is; what a service is started from."""

    folder: Folder
    options: Options
    database: str
    broker: str
    store: str
    pepper: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.options.port}"

    def coordinator(self) -> dict[str, str]:
        return {
            **_without(_base(self.folder), ("ENV", "HOST", "PORT")),
            "FHV_ENV": "prod",
            "FHV_HOST": "127.0.0.1",
            "FHV_PORT": str(self.options.port),
            "FHV_DATABASE_URL": self.database,
            "FHV_BROKER_URL": self.broker,
            "FHV_OBJECT_STORE_URL": self.store,
            "FHV_TOKEN_PEPPER": self.pepper,
        }

    def worker(self, token: str, *, site: Path | None) -> dict[str, str]:
        kept = _without(_base(self.folder), _COORDINATORS)
        kept |= {
            "FHV_COORDINATOR_URL": self.url,
            "FHV_BROKER_URL": self.broker,
            "FHV_TOKEN": token,
        }
        if site is None:
            return kept | {"FHV_OBJECT_STORE_URL": self.store}
        return _without(kept, ("OBJECT_STORE_URL", "SITE_CONFIG")) | {"FHV_SITE_CONFIG": str(site)}


class _Set:
    """The processes of the set, with how each is started (again)."""

    def __init__(self, processes: Processes, needs: _Needs, record: Record) -> None:
        self.record = record
        self._processes = processes
        self._folder = needs.folder
        self._how: dict[str, tuple[list[str], Mapping[str, str]]] = {}
        self._began: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}  # when to start it again

    def start(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._how[name] = (arguments, environment)
        self._begin(name, restarts=0)

    def _begin(self, name: str, *, restarts: int) -> None:
        child = self._processes.start(name, *self._how[name])
        self._began[name] = time.monotonic()
        services = {**self.record.services, name: Service(child.pid, restarts)}
        self.write(self.record.having(services=services))

    def write(self, record: Record) -> None:
        self.record = record
        self._folder.write(record)

    def tend(self, say: Say) -> None:
        """Start again what has ended; what ends again and again waits longer each time."""
        now = time.monotonic()
        for child in self._processes.ended:
            self._processes.kill(child.name)  # what it left in its session goes with it
            steady = now - self._began[child.name] > _STEADY_S
            failures = 0 if steady else self._failures.get(child.name, 0)
            self._failures[child.name] = failures + 1
            self._due[child.name] = now + min(_LONGEST_PAUSE_S, 0.5 * 2.0**failures)
            say(f"{child.name} has ended ({_how_it_ended(child)}); it is started again")
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            self._begin(name, restarts=self.record.services[name].restarts + 1)


def _how_it_ended(child: Child) -> str:
    code = child.process.poll()
    return "?" if code is None else ending(code)


def keep(folder: Folder, options: Options, say: Say) -> None:
    """Start everything, say where it is, and keep it running until a signal (``Stopped``).

    Call it with the folder's lock held. Raises ``ServiceError``; the record says why, too.
    """
    try:
        _from_files()
    except SettingFileError as error:
        folder.write(Record(state="failed", why=str(error), code=1, port=options.port))
        raise ServiceError(str(error)) from None
    record = Record(
        state="starting",
        url=f"http://127.0.0.1:{options.port}",
        port=options.port,
        database=_whose("FHV_DATABASE_URL"),
        broker=_whose("FHV_BROKER_URL"),
        store=_store(folder),
    )
    folder.write(record)
    try:
        with stop_on_signals(), _running(folder, options, record, say) as (services, alive):
            while True:
                signal.sigtimedwait([], _LOOK_S)
                services.tend(say)
                alive()
    except (
        ServiceError,
        embedded.EmbeddedServiceError,
        SettingsError,
        SQLAlchemyError,
        DomainError,
    ) as error:
        text = first_line(error) if isinstance(error, SQLAlchemyError) else str(error)
        code = 2 if isinstance(error, PortTaken) else 1
        folder.write(record.having(state="failed", why=text, code=code, services={}))
        raise ServiceError(text) from error
    except BaseException:
        folder.write(record.having(state="stopped", services={}))
        raise


@contextmanager
def _running(
    folder: Folder, options: Options, record: Record, say: Say
) -> Iterator[tuple[_Set, Callable[[], None]]]:
    """All services, ready; and a look at those that cannot be started again by themselves."""
    for name in leftovers.end(folder):
        say(f"ended a process that was left over: {name}")
    _must_be_free(options.port)
    with ExitStack() as stack:
        say(f"Postgres ({record.database})")
        database = stack.enter_context(embedded.postgres(folder.path / "pg"))
        say(f"Valkey ({record.broker})")
        broker = stack.enter_context(embedded.valkey(folder.path / "valkey"))
        needs = _Needs(
            folder=folder,
            options=options,
            database=database,
            broker=broker,
            store=record.store,
            pepper=os.environ.get("FHV_TOKEN_PEPPER") or folder.pepper(),
        )
        migration.upgrade(load(Secrets, **_secrets(needs)).database_url)
        worker_token = _tokens(needs)
        processes = stack.enter_context(Processes(folder.logs, folder=ROOT))
        services = _Set(processes, needs, record)
        say(f"coordinator at {needs.url}")
        services.start(COORDINATOR, _command("serve"), needs.coordinator())
        _wait_until_ready(options.port, processes)
        queues = [QUEUE_COORDINATOR, QUEUE_SYNTHESIS, *([QUEUE_TRAIN] if options.site else [])]
        for queue in queues:
            environment = needs.worker(
                worker_token, site=options.site if queue == QUEUE_TRAIN else None
            )
            name = f"worker-{queue}"
            say(name)
            services.start(name, _command("worker", "run", "--queue", queue), environment)
        services.write(services.record.having(state="ready"))
        say("ready")

        def alive() -> None:
            if record.database == "embedded" and not leftovers.postgres_runs(folder):
                raise ServiceError(f"Postgres has ended; its log: {folder.path / 'pg' / 'log'}")
            if record.broker == "embedded" and not _listens(urlsplit(broker).port or 0):
                raise ServiceError(f"Valkey has ended; its files: {folder.path / 'valkey'}")

        try:
            yield services, alive
        finally:
            services.write(services.record.having(state="stopping"))


def _whose(setting: str) -> str:
    return "given" if os.environ.get(setting) else "embedded"


def _secrets(needs: _Needs) -> dict[str, object]:
    return {"env": "prod", "database_url": needs.database, "token_pepper": needs.pepper}


def _store(folder: Folder) -> str:
    if given := os.environ.get("FHV_OBJECT_STORE_URL"):
        return given
    path = folder.path / "store"
    path.mkdir(exist_ok=True, mode=0o700)
    return path.as_uri()


def _tokens(needs: _Needs) -> str:
    """Make sure that the administrator's token in the folder is good; the workers' token."""
    secrets = load(Secrets, **_secrets(needs))

    async def made() -> str:
        database = Database(secrets.database_url, pool_size=2)
        try:
            for scope in ("admin", "worker"):
                name = f"{scope}.token"
                if await _good(database, needs.folder.read(name), secrets.pepper):
                    continue
                async with database.write() as session:
                    wanted = tokens.NewToken.model_validate({"scope": scope, "label": "up"})
                    new = await tokens.make(
                        session, database, audit.CONSOLE, secrets.pepper, wanted
                    )
                needs.folder.keep(name, new.token)
        finally:
            await database.close()
        return needs.folder.read("worker.token")

    return asyncio.run(made())


async def _good(database: Database, token: str, pepper: bytes) -> bool:
    """Would the coordinator take this token?"""
    if not token:
        return False
    async with database.read() as session:
        row = await session.scalar(select(Token).where(Token.mac == auth.mac_of(token, pepper)))
        now = await database.now(session)
    if row is None or row.revoked_at is not None:
        return False
    return row.expires_at is None or row.expires_at > now


def _must_be_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on 127.0.0.1:{port}: {error.strerror or error}. "
                "Give another port with --port."
            ) from error


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2.0).close()
    except OSError:
        return False
    return True


def readiness(port: int) -> tuple[bool, str]:
    """What the coordinator on this port says of itself: is it ready, and its words."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status == 200, answer.read(2_000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return False, f"no answer ({type(error).__name__})"
    finally:
        connection.close()


def _wait_until_ready(port: int, processes: Processes) -> None:
    last = "no answer yet"

    def look() -> bool | None:
        nonlocal last
        ready, last = readiness(port)
        return True if ready else None

    wait_for(
        "the coordinator to be ready",
        look,
        seconds=_READY_S,
        check=processes.check,
        state=lambda: last,
    )
