"""The demo's machine room: Postgres, Valkey, coordinator, two Celery workers, one site agent.

All real processes on loopback, each with the environment that it needs and no more: only the
coordinator gets the database's URL and the pepper, and the agent gets neither broker nor store.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from api import embedded
from benchmarks.demo.memory import PeakMemory
from benchmarks.demo.narrator import Narrator
from core.processes import Processes, ServiceError, wait_for
from core.training.compute import Engine
from worker.answers import Retry
from worker.client import CoordinatorClient
from worker.errors import ClientError

ROOT = Path(__file__).resolve().parents[2]
COORDINATOR, TRAIN_WORKER, AGENT = "coordinator", "worker-train", "agent"
_START_S = 60.0
_COMMAND_S = 120.0
_TOKEN = re.compile(r"\bfhv_[a-z]+_[A-Za-z0-9_-]+")


def bare_environment() -> dict[str, str]:
    """The caller's environment without our settings; one thread per process on a small machine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FHV_")}
    return {
        **kept,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


@dataclass
class Stack:
    """URLs and secrets of a running set of services; starts and kills its processes."""

    processes: Processes
    database_url: str
    broker_url: str
    store_url: str
    port: int
    external_database: bool
    gradients: Engine = "ghost"
    settings: dict[str, str] = field(default_factory=dict)  # more of the coordinator's
    pepper: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def coordinator_environment(self) -> dict[str, str]:
        return {
            **bare_environment(),
            "FHV_ENV": "prod",
            "FHV_HOST": "127.0.0.1",
            "FHV_PORT": str(self.port),
            "FHV_DATABASE_URL": self.database_url,
            "FHV_BROKER_URL": self.broker_url,
            "FHV_OBJECT_STORE_URL": self.store_url,
            "FHV_TOKEN_PEPPER": self.pepper,
            **self.settings,
        }

    def worker_environment(self, token: str) -> dict[str, str]:
        return {
            **bare_environment(),
            "FHV_COORDINATOR_URL": self.url,
            "FHV_TOKEN": token,
            "FHV_DEVICE": "cpu",
            "FHV_GRADIENTS": self.gradients,
        }

    def command(self, *arguments: str) -> str:
        """Run one ``fedhypevae`` command as the administrator would; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "core.cli", *arguments],
            cwd=ROOT,
            env=self.coordinator_environment(),
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
        )
        if done.returncode != 0:
            raise ServiceError(
                f"fedhypevae {' '.join(arguments)} ended with status {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def token(self, scope: str) -> str:
        """A new token by the command line; printed once, kept in memory only."""
        found = _TOKEN.search(self.command("token", "create", "--scope", scope, "--label", "demo"))
        if found is None:
            raise ServiceError(f"fedhypevae token create printed no token of scope {scope!r}")
        return found.group()

    def client(self, token: str | None) -> CoordinatorClient:
        return CoordinatorClient(self.url, token, retry=Retry(attempts=6, total_s=20.0))

    # --- processes ---

    def start_coordinator(self) -> None:
        """Start the coordinator (again) and wait until it says that it is ready."""
        self._start(COORDINATOR, ["serve"], self.coordinator_environment())
        last = "no answer yet"
        with self.client(None) as client:

            def ready() -> bool | None:
                nonlocal last
                try:
                    client.ready()
                except ClientError as error:
                    last = str(error)
                    return None
                return True

            wait_for(
                f"the coordinator at {self.url} to be ready",
                ready,
                seconds=_START_S,
                check=self.processes.check,
                state=lambda: last,
            )

    def start_worker(self, queue: str, token: str, site: Path | None = None) -> None:
        environment = self.worker_environment(token)
        environment["FHV_BROKER_URL"] = self.broker_url
        if site is None:
            environment["FHV_OBJECT_STORE_URL"] = self.store_url
        else:
            environment["FHV_SITE_CONFIG"] = str(site)
        self._start(f"worker-{queue}", ["worker", "run", "--queue", queue], environment)

    def start_agent(self, token: str, site: Path, *, name: str = AGENT) -> None:
        """Start a site's agent; several of them need names of their own."""
        environment = self.worker_environment(token)
        environment["FHV_SITE_CONFIG"] = str(site)
        self._start(name, ["agent", "run"], environment)

    def _start(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        self.processes.start(name, [sys.executable, "-m", "core.cli", *arguments], environment)


def _postmaster(folder: Path) -> int | None:
    """The embedded Postgres' process id: it has daemonised and is no child of ours."""
    try:
        return int((folder / "postmaster.pid").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


@contextmanager
def services(
    folder: Path,
    narrator: Narrator,
    *,
    port: int | None = None,
    memory: PeakMemory | None = None,
    gradients: Engine = "ghost",
) -> Iterator[Stack]:
    """Postgres and Valkey in ``folder`` (or by URL), the schema, and nothing else yet."""
    external = bool(os.environ.get("FHV_DATABASE_URL"))
    with ExitStack() as stack:
        with narrator.step("Starting Postgres" + (" (FHV_DATABASE_URL)" if external else "")):
            database = stack.enter_context(embedded.postgres(folder / "pg"))
            if memory is not None and (pid := _postmaster(folder / "pg")) is not None:
                memory.add(pid)
        outside = bool(os.environ.get("FHV_BROKER_URL"))
        with narrator.step("Starting Valkey" + (" (FHV_BROKER_URL)" if outside else "")):
            broker = stack.enter_context(embedded.valkey(folder / "valkey"))
        processes = stack.enter_context(Processes(folder / "logs", folder=ROOT))
        store = folder / "store"
        store.mkdir(mode=0o700)
        made = Stack(
            processes=processes,
            database_url=database,
            broker_url=broker,
            store_url=store.resolve().as_uri(),
            port=port or embedded.free_port(),
            external_database=external,
            gradients=gradients,
        )
        with narrator.step("Building the schema with Alembic (fedhypevae db upgrade)"):
            made.command("db", "upgrade")
        yield made
