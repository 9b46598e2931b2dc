"""The machine room of a part: services and a coordinator of its own, and who runs it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.demo.narrator import Narrator
from benchmarks.demo.stack import COORDINATOR, Stack, services
from benchmarks.federation.plans import SPACE
from core.wire.jobs import QUEUE_COORDINATOR
from worker.client import CoordinatorClient

WORKER = f"worker-{QUEUE_COORDINATOR}"


@dataclass(frozen=True)
class Room:
    """Postgres, Valkey, the coordinator and its Celery worker, all up."""

    folder: Path
    stack: Stack
    operator: CoordinatorClient

    def pid(self, name: str) -> int:
        return next(child.pid for child in self.stack.processes.running if child.name == name)

    @property
    def api(self) -> int:
        return self.pid(COORDINATOR)

    @property
    def worker(self) -> int:
        return self.pid(WORKER)

    @property
    def postgres(self) -> int:
        """The postmaster, whose children are one for each connection."""
        return int((self.folder / "pg" / "postmaster.pid").read_text().split()[0])


@contextmanager
def room(keep: Path | None = None, settings: Mapping[str, str] | None = None) -> Iterator[Room]:
    """A fresh one in a temporary folder. ``keep``: copy the logs there at the end. ``settings``:
    more of the coordinator's environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="fhv-"))
    try:
        with ExitStack() as stack:
            made = stack.enter_context(services(folder, Narrator(Console(quiet=True))))
            made.settings.update(settings or {})
            admin = made.token("admin")
            made.start_coordinator()
            made.start_worker(QUEUE_COORDINATOR, made.token("worker"))
            operator = stack.enter_context(made.client(admin))
            operator.create_space(SPACE)
            yield Room(folder, made, operator)
    finally:
        if keep is not None:
            shutil.copytree(folder / "logs", keep, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
