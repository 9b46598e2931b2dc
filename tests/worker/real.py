"""A real coordinator over real HTTP in this process, and real sites that work for it.

The application is served by uvicorn on a thread, with its sweeper, on a real database. Sites
execute orders as an agent does, with their own ledgers; sums are taken by the worker's own code.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
import structlog
import uvicorn
from click.testing import Result
from typer.testing import CliRunner

from api import tokens
from api.app import create_app
from api.config import Settings
from api.db.engine import Database
from core.training.compute import Compute
from core.wire.messages import ConsentDecision, WorkOrder
from tests.api.support import SPACE, a_plan
from worker.agent.site import Site
from worker.aggregation import carry_out
from worker.cli import agent_app
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig, SiteSection
from worker.delivery import Workplace, give_back
from worker.execution import Outcome, perform, recover

DELTA = 1e-5


def write_records(path: Path, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, 50)
    x = np.eye(3, 6)[y] + 0.2 * draw.normal(size=(50, 6))
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The application on a free port of this machine; its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = uvicorn.Config(create_app(settings), log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive(), "the coordinator did not start"
                assert time.monotonic() < until, "the coordinator did not start in time"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(20)


def issue(settings: Settings, scope: str, client_id: str | None = None) -> str:
    async def made() -> str:
        database = Database(settings.database_url, pool_size=2)
        try:
            async with database.write() as session:
                _, secret = await tokens.issue(
                    session,
                    settings.pepper,
                    scope=scope,
                    label="test",
                    client_id=UUID(client_id) if client_id else None,
                )
        finally:
            await database.close()
        return secret

    return asyncio.run(made())


@dataclass
class Federation:
    """The coordinator and everybody who calls it. Sites are by population: one state folder."""

    url: str
    settings: Settings
    database_url: str
    folder: Path
    operator: CoordinatorClient
    worker: CoordinatorClient
    tokens: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def enrol(self, name: str, population: str, *, site: str = "hospital") -> None:
        self.operator.create_space(_space())
        made = self.operator.enrol_client(
            name=name, space="tiny", site=site, population=population, unit="record",
            managed=False, epsilon=50.0, delta=DELTA,
        )  # fmt: skip
        self.ids[name] = str(made.client["id"])
        assert made.token is not None
        self.tokens[name] = made.token

    def config(self, state: str, population: str, *names: str) -> SiteConfig:
        """A site over one population: its clients share records, ledger and limit."""
        records = self.folder / f"{population.replace('/', '-')}.npz"
        if not records.exists():
            write_records(records, seed=len(population))
        clients = tuple(
            ClientConfig(
                name=name, data=records, unit="record", population=population,
                max_epsilon=50.0, delta=DELTA, min_noise_multiplier=0.1,
            )
            for name in names
        )  # fmt: skip
        return SiteConfig(site=SiteSection(state_dir=self.folder / state), client=clients)

    def client(self, name: str) -> CoordinatorClient:
        return CoordinatorClient(self.url, self.tokens[name])

    def start(self, name: str, *clients: str, **changes: Any) -> str:
        # Longer than any test: no attempt is lost but those that a test gives back.
        rules = {"quorum": len(clients), "deadline_s": 600.0, "lease_s": 300.0, "max_attempts": 5}
        plan = a_plan(name, round=rules, **changes)
        run = self.operator.create_run(plan, clients)
        for client in clients:
            word = ConsentDecision(
                client=client, spec_digest=run["spec_digest"], decision="approve", by="policy"
            )
            with self.client(client) as coordinator:
                coordinator.decide(str(run["id"]), word)
        self.operator.start_run(str(run["id"]))
        return str(run["id"])

    # --- sites ---

    def order(self, name: str, *, wait_s: float = 10.0) -> WorkOrder:
        with self.client(name) as coordinator:
            order = coordinator.next_work(self.ids[name], wait_s=wait_s)
        assert isinstance(order, WorkOrder), f"no work for {name}"
        return order

    def work(self, name: str, site_config: SiteConfig) -> Outcome:
        """The client's next order, as its agent would do it."""
        config = site_config.require(name)
        order = self.order(name)
        with Site.open(site_config.state_dir) as site, self.client(name) as coordinator:
            place = Workplace(site, coordinator, compute=Compute(device="cpu"), patience_s=5.0)
            with site.lock(name):
                recover(config, place)
                return perform(order, config, place)

    def give_back(self, name: str) -> WorkOrder:
        """Claim and give back without touching the ledger here: an attempt lost at no cost."""
        order = self.order(name)
        with self.client(name) as coordinator:
            give_back(order.work_id, order.lease_token, "site-not-ready", coordinator)
        return order

    # --- the coordinator's side ---

    def aggregate(self) -> None:
        """Claim the ready job, sum, complete; until the round is published."""
        job_id = self._ready_job()
        job = self.worker.claim_job(job_id)
        store = self.settings.object_store_url
        assert carry_out(job, self.worker, store, stop=threading.Event()) == "completed"

    def _ready_job(self) -> str:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            rows = self.sql("SELECT id FROM jobs WHERE state = 'ready'")
            if rows:
                return str(rows[0][0])
            time.sleep(0.05)
        raise AssertionError("no round was closed in time")

    def sql(self, statement: str, *values: object) -> list[Any]:
        """As the superuser with triggers off: what an intruder or an old backup could have done."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            cursor = connection.execute(statement, values)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def complete(self, run_id: str, sites: dict[str, SiteConfig], rounds: int = 1) -> None:
        """All of a run, until its last model is published."""
        self.finish(sites, rounds)
        until = time.monotonic() + 20
        while self.operator.run(run_id)["state"] != "completed":
            assert time.monotonic() < until, "the run was not completed in time"
            time.sleep(0.02)

    def finish(self, sites: dict[str, SiteConfig], rounds: int) -> None:
        for _ in range(rounds):
            for name, site_config in sites.items():
                assert self.work(name, site_config) is Outcome.ACCEPTED
            self.aggregate()


def _space() -> Any:
    from core.federation.plan import EmbeddingSpace

    return EmbeddingSpace.model_validate(SPACE)


@contextmanager
def federation(database_url: str, folder: Path) -> Iterator[Federation]:
    # The application logs in this process: not into what a command prints.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    store = folder / "objects"
    store.mkdir()
    settings = Settings(
        env="prod",
        token_pepper="a pepper for tests only",
        database_url=database_url,
        object_store_url=f"file://{store}",
        grace_s=0.0,
        retry_backoff_s=0.1,
        database_pool=4,
    )
    with (
        served(settings) as url,
        CoordinatorClient(url, issue(settings, "admin")) as operator,
        CoordinatorClient(url, issue(settings, "worker")) as worker,
    ):
        try:
            yield Federation(url, settings, database_url, folder, operator, worker)
        finally:
            structlog.reset_defaults()


def commands(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``fedhypevae agent ...`` of a site, with a token, in this process."""
    monkeypatch.setattr("worker.logs.configure", lambda _: None)

    def run(
        site_config: SiteConfig, token: str | None, *arguments: str, url: str = fed.url
    ) -> Result:
        clients = [
            f'[[client]]\nname = "{client.name}"\ndata = "{client.data}"\nunit = "record"\n'
            f'population = "{client.population}"\nmax_epsilon = 50.0\ndelta = {DELTA}\n'
            "min_noise_multiplier = 0.1"
            for client in site_config.client
        ]
        path = fed.folder / "site.toml"
        path.write_text("\n".join([f'[site]\nstate_dir = "{site_config.state_dir}"', *clients]))
        monkeypatch.setenv("FHV_SITE_CONFIG", str(path))
        monkeypatch.setenv("FHV_COORDINATOR_URL", url)
        monkeypatch.setenv("FHV_TOKEN", token or "")
        return CliRunner().invoke(agent_app, list(arguments))

    return run
