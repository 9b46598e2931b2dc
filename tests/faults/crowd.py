"""A federation of twenty clients with a process for each agent, for the soak."""

from __future__ import annotations

import hashlib
import secrets
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from api import embedded
from benchmarks.demo import federation
from benchmarks.demo.sites import Client, Party, write_party
from benchmarks.demo.small import CLASSES, DIM
from benchmarks.demo.stack import ROOT, Stack, bare_environment
from benchmarks.scanner_digits import Site
from core.federation.plan import EmbeddingSpace, Plan
from core.processes import Processes, wait_for
from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_TRAIN
from tests.faults.services import Postgres, Valkey, postgres, valkey
from tests.faults.world import COORDINATOR, SUM, TRAIN, a_plan
from tests.ledgers import Member
from worker.answers import Retry
from worker.client import CoordinatorClient
from worker.errors import ClientError

MANAGED = ("site-00", "site-01")
ALONE = tuple(f"site-{number:02d}" for number in range(2, 20))
CLIENTS = (*MANAGED, *ALONE)
AGENTS = tuple(f"agent-of-{name}" for name in ALONE)
_RECORDS = 40
_SETTINGS = {
    "FHV_GRACE_S": "3",
    "FHV_RETRY_BACKOFF_S": "0.3",
    "FHV_RESEND_S": "2",
    "FHV_JOB_LEASE_S": "5",
    "FHV_LOG_LEVEL": "WARNING",
}
_START_S = 180.0


def _space() -> EmbeddingSpace:
    return EmbeddingSpace(
        name="demo-clusters",
        backbone="none: Gaussian clusters out of a seeded generator",
        weights_digest="sha256:" + hashlib.sha256(b"crowd").hexdigest(),
        preprocessing="none",
        dim=DIM,
        classes=CLASSES,
    )


def _sites() -> list[Site]:
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(len(CLASSES), DIM))
    made = []
    for name in CLIENTS:
        y = rng.integers(0, len(CLASSES), size=_RECORDS)
        x = (centres[y] + rng.normal(size=(_RECORDS, DIM))).astype(np.float32)
        made.append(Site(name, "clusters", x, y, x[:1], y[:1]))
    return made


def _plan(rounds: int) -> Plan:
    """One sketch, then training; every round needs every client."""
    plan = a_plan(
        f"soak-{uuid.uuid4().hex[:12]}",
        lease_s=15.0,
        deadline_s=300.0,
        max_attempts=20,
        quorum=len(CLIENTS),
    )
    privacy = plan.privacy.model_copy(update={"rounds": rounds - 1, "epsilon": 4.0})
    return plan.model_copy(update={"privacy": privacy})


@dataclass
class Crowd:
    folder: Path
    processes: Processes
    database: Postgres
    broker: Valkey
    store_url: str
    port: int
    pepper: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    tokens: dict[str, str] = field(default_factory=dict, repr=False)  # by process
    parties: dict[str, Party] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    operator: CoordinatorClient = field(init=False, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, name: str) -> None:
        arguments = {
            COORDINATOR: ["serve"],
            TRAIN: ["worker", "run", "--queue", QUEUE_TRAIN],
            SUM: ["worker", "run", "--queue", QUEUE_COORDINATOR],
        }.get(name, ["agent", "run"])
        environment = {**bare_environment(), "FHV_LOG_LEVEL": "warning"}
        if name in (COORDINATOR, TRAIN, SUM):
            environment["FHV_BROKER_URL"] = self.broker.url
        if name in (COORDINATOR, SUM):
            environment["FHV_OBJECT_STORE_URL"] = self.store_url
        if name == COORDINATOR:
            environment |= {
                **_SETTINGS,
                "FHV_PORT": str(self.port),
                "FHV_DATABASE_URL": self.database.url,
                "FHV_TOKEN_PEPPER": self.pepper,
            }
        else:
            environment |= {
                "FHV_COORDINATOR_URL": self.url,
                "FHV_TOKEN": self.tokens[name],
                "FHV_DEVICE": "cpu",
            }
        if name in self.parties:
            environment["FHV_SITE_CONFIG"] = str(self.parties[name].config)
        self.processes.start(name, [sys.executable, "-m", "core.cli", *arguments], environment)

    def wait_ready(self) -> None:
        with CoordinatorClient(self.url, None, retry=Retry(attempts=1)) as client:

            def ready() -> bool | None:
                try:
                    client.ready()
                except ClientError:
                    return None
                return True

            wait_for(
                "the coordinator to be ready", ready, seconds=_START_S, check=self.processes.check
            )

    def begin(self, rounds: int) -> str:
        run = self.operator.create_run(_plan(rounds), list(CLIENTS))
        self.operator.start_run(str(run["id"]))
        return str(run["id"])

    def published(self, run_id: str) -> int:
        run = self.operator.run(run_id)
        assert run["state"] in ("running", "completed"), run["why"]
        return int(run["rounds_published"])

    def situation(self, run_id: str) -> str:
        return federation.situation(self.operator, run_id)


@contextmanager
def crowd_in(folder: Path) -> Iterator[Crowd]:
    with ExitStack() as exits:
        database = exits.enter_context(postgres(folder / "pg"))
        broker = exits.enter_context(valkey(folder / "valkey"))
        processes = exits.enter_context(Processes(folder / "logs", folder=ROOT, patience_s=20.0))
        store = folder / "store"
        store.mkdir(mode=0o700)
        port = embedded.free_port()
        crowd = Crowd(folder, processes, database, broker, store.resolve().as_uri(), port)
        stack = Stack(
            processes=processes,
            database_url=database.url,
            broker_url=broker.url,
            store_url=crowd.store_url,
            port=port,
            external_database=False,
            pepper=crowd.pepper,
        )
        stack.command("db", "upgrade")
        crowd.start(COORDINATOR)
        patient = Retry(attempts=100, total_s=60.0, longest_s=0.5)
        crowd.operator = exits.enter_context(
            CoordinatorClient(crowd.url, stack.token("admin"), retry=patient)
        )
        space, plan = _space(), _plan(2)
        plan = plan.model_copy(
            update={"privacy": plan.privacy.model_copy(update={"epsilon": 60.0})}
        )
        clients = [Client(site.name, site, managed=site.name in MANAGED) for site in _sites()]
        party = write_party(folder / "managed", clients[: len(MANAGED)], plan, space)
        crowd.parties[TRAIN] = party
        crowd.wait_ready()
        ids, tokens = federation.enrol(crowd.operator, clients, plan, space)
        crowd.tokens[TRAIN] = crowd.tokens[SUM] = stack.token("worker")
        for client in clients:
            where = party
            if not client.managed:
                where = write_party(folder / client.name, [client], plan, space)
                agent = f"agent-of-{client.name}"
                crowd.parties[agent], crowd.tokens[agent] = where, tokens[client.name]
            member = Member(client.name, ids[client.name], client.population, where.state)
            crowd.members.append(member)
        for name in (TRAIN, SUM, *AGENTS):
            crowd.start(name)
        yield crowd
