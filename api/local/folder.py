"""The folder of the services on this machine: data, logs, secrets, and who runs them.

Whoever runs the services holds the folder's lock, and the kernel releases it however the holder
dies: whether they run is never guessed from a number in a file.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from core.files import keep_private

State = Literal["starting", "ready", "stopping", "stopped", "failed"]
# Every process that belongs to a folder carries it in its environment under this name.
MARK = "FHV_LOCAL_FOLDER"
_LOOKING_S = 0.5
_DATA = ("pg", "valkey", "store", "logs")
_FILES = ("admin.token", "worker.token", "pepper", "services.json", "lock")


class FolderError(Exception):
    """The folder cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Service:
    """A process of the set: its id, and how often it was started again after it had ended."""

    pid: int
    restarts: int = 0


@dataclass(frozen=True)
class Record:
    """What the services' keeper last wrote about them."""

    state: State = "stopped"
    url: str = ""
    port: int = 0
    database: str = ""  # "embedded", or "given" (by FHV_DATABASE_URL)
    broker: str = ""
    store: str = ""
    why: str = ""
    code: int = 0  # exit code of a failed start
    services: dict[str, Service] = field(default_factory=dict)

    def having(self, **changes: Any) -> Record:
        return replace(self, **changes)


def default_folder() -> Path:
    """``FHV_HOME``; else the user's own state folder (root: below /var/lib, because the embedded
    Postgres then runs as another user, who must be able to reach it).
    """
    if given := os.environ.get("FHV_HOME"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/fedhypevae")
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "fedhypevae"


class Folder:
    """Paths and small files below one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.logs = self.path / "logs"
        self.admin_token = self.path / "admin.token"
        self.worker_token = self.path / "worker.token"
        self._record = self.path / "services.json"
        self._lock = self.path / "lock"

    def make(self) -> None:
        """Raises ``FolderError``."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = {each.name for each in self.path.iterdir() if not each.name.startswith(".")}
            strange = sorted(names - {*_DATA, *_FILES})
            self.logs.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise FolderError(
                f"{self.path} cannot be used: {error.strerror or error}. "
                "Give another one with --folder."
            ) from error
        if strange:
            raise FolderError(
                f"{self.path} holds something else ({strange[0]}). Give a folder of its own with "
                "--folder."
            )

    # --- who runs the services ---

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Be the one who runs the services; False if somebody is already."""
        handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _taken(handle):
                yield False
                return
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield True
        finally:
            os.close(handle)

    def keeper(self) -> int | None:
        """The process that runs the services now; None if none does. 0: its id is not known yet."""
        try:
            handle = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            written = os.pread(handle, 20, 0).decode(errors="replace").strip()
            return int(written) if written.isdecimal() else 0
        finally:
            os.close(handle)
        return None

    # --- small files ---

    def record(self) -> Record:
        """An empty one where nothing was written yet. Raises ``FolderError``."""
        try:
            found = json.loads(self._record.read_text())
            services = {name: Service(**each) for name, each in found.pop("services").items()}
            return Record(**found, services=services)
        except FileNotFoundError:
            return Record()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FolderError(
                f"{self._record} cannot be read ({error}). Remove this file; data are elsewhere."
            ) from error

    def write(self, record: Record) -> None:
        text = json.dumps(asdict(record), indent=2) + "\n"
        keep_private(self._record, text.encode(), replace=True)

    def pepper(self) -> str:
        """The key of this folder's tokens, made once: tokens stay good over restarts."""
        return self.read("pepper") or self.keep("pepper", secrets.token_urlsafe(32))

    def read(self, name: str) -> str:
        """A secret that was kept; empty if there is none."""
        try:
            return (self.path / name).read_text().strip()
        except FileNotFoundError:
            return ""

    def keep(self, name: str, secret: str) -> str:
        keep_private(self.path / name, f"{secret}\n".encode(), replace=True)
        return secret

    def delete(self) -> None:
        """Remove what ``up`` has put here, and the folder if nothing else is in it."""
        for name in _DATA:
            if (self.path / name).exists():
                shutil.rmtree(self.path / name)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


def _taken(handle: int) -> bool:
    """Take the lock. Who only looks (``keeper``) holds it for a moment: that is waited out."""
    until = time.monotonic() + _LOOKING_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
