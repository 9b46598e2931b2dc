"""Runs the services of one folder until a signal: starts them, and starts again what has ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.exc import SQLAlchemyError

from api import embedded, migration
from api.config import SettingsError
from api.console import first_line
from api.local import leftovers
from api.local.environments import Needs, Options, command, from_files
from api.local.folder import Folder, Record
from api.local.ports import PortTaken, listens, must_be_free, wait_until_ready
from api.local.services import Say, Services
from api.local.tokens import keep_tokens
from core.errors import DomainError
from core.processes import Processes, ServiceError, stop_on_signals
from core.secret_files import SettingFileError
from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_SYNTHESIS, QUEUE_TRAIN

ROOT = Path(__file__).resolve().parents[2]
COORDINATOR = "coordinator"
_LOOK_S = 0.5


def keep(folder: Folder, options: Options, say: Say) -> None:
    """Start everything, say where it is, and keep it running until a signal (``Stopped``).

    Call it with the folder's lock held. Raises ``ServiceError``; the record says why, too.
    """
    try:
        from_files()
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
) -> Iterator[tuple[Services, Callable[[], None]]]:
    """All services, ready; and a look at those that cannot be started again by themselves."""
    for name in leftovers.end(folder):
        say(f"ended a process that was left over: {name}")
    must_be_free(options.port)
    with ExitStack() as stack:
        say(f"Postgres ({record.database})")
        database = stack.enter_context(embedded.postgres(folder.path / "pg"))
        say(f"Valkey ({record.broker})")
        broker = stack.enter_context(embedded.valkey(folder.path / "valkey"))
        needs = Needs(
            folder=folder,
            options=options,
            database=database,
            broker=broker,
            store=record.store,
            pepper=os.environ.get("FHV_TOKEN_PEPPER") or folder.pepper(),
        )
        migration.upgrade(needs.secrets().database_url)
        worker_token = keep_tokens(folder, needs.secrets())
        processes = stack.enter_context(Processes(folder.logs, folder=ROOT))
        services = Services(processes, folder, record)
        say(f"coordinator at {needs.url}")
        services.start(COORDINATOR, command("serve"), needs.coordinator())
        wait_until_ready(options.port, processes)
        queues = [QUEUE_COORDINATOR, QUEUE_SYNTHESIS, *([QUEUE_TRAIN] if options.site else [])]
        for queue in queues:
            environment = needs.worker(
                worker_token, site=options.site if queue == QUEUE_TRAIN else None
            )
            name = f"worker-{queue}"
            say(name)
            services.start(name, command("worker", "run", "--queue", queue), environment)
        services.write(services.record.having(state="ready"))
        say("ready")

        def alive() -> None:
            if record.database == "embedded" and not leftovers.postgres_runs(folder):
                raise ServiceError(f"Postgres has ended; its log: {folder.path / 'pg' / 'log'}")
            if record.broker == "embedded" and not listens(urlsplit(broker).port or 0):
                raise ServiceError(f"Valkey has ended; its files: {folder.path / 'valkey'}")

        try:
            yield services, alive
        finally:
            services.write(services.record.having(state="stopping"))


def _whose(setting: str) -> str:
    return "given" if os.environ.get(setting) else "embedded"


def _store(folder: Folder) -> str:
    if given := os.environ.get("FHV_OBJECT_STORE_URL"):
        return given
    path = folder.path / "store"
    path.mkdir(exist_ok=True, mode=0o700)
    return path.as_uri()
