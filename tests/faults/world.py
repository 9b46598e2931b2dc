"""A whole federation on loopback whose every part can be killed and started again.

Three clients: two are served by the Celery worker of the queue ``train``, one by a site agent (and
a fourth one by the worker, for runs that can do without one). All know one another's keys.
All of them, and the worker of the queue ``coordinator``, reach the coordinator through the fault
proxy, and so does the operator (the test). Processes stay up from cell to cell, because
starting them is what takes time; every cell has a run of its own.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from api import embedded
from benchmarks.demo import federation
from benchmarks.demo.main import Options, load_plan
from benchmarks.demo.sites import Client, Party, write_party
from benchmarks.demo.small import clusters
from benchmarks.demo.stack import ROOT, Stack, bare_environment
from core.federation.plan import Plan
from core.federation.secure_plan import SecurePlan
from core.processes import Processes, wait_for
from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_TRAIN
from tests.faults.proxy import Proxy
from tests.faults.services import Disk, Postgres, Valkey, postgres, valkey
from tests.ledgers import Member
from worker.agent import peers
from worker.agent.site import LEDGER_FILE, Site
from worker.agent.spend import SiteLedger
from worker.agent.sum_identity import key_of
from worker.answers import JsonObject, Retry
from worker.client import CoordinatorClient
from worker.config import load_site
from worker.errors import ApiProblem, ClientError

T = TypeVar("T")

COORDINATOR, REPLICA = "coordinator", "coordinator-2"
TRAIN, SUM, AGENT = "worker-train", "worker-coordinator", "agent"
OPERATOR = "operator"  # the test itself
MANAGED = ("site-a", "site-b", "site-d")
SPARE = "site-d"  # takes part only in runs that ask for it

# How fast the federation notices things. Short, so that a cell takes seconds; the order of
# magnitude between them is that of the defaults.
LEASE_S, JOB_LEASE_S = 5.0, 3.0
SETTINGS = {
    "FHV_GRACE_S": "2",
    "FHV_RETRY_BACKOFF_S": "0.3",
    "FHV_RESEND_S": "1",
    "FHV_JOB_LEASE_S": str(JOB_LEASE_S),
}
CLOCK = Path(__file__).resolve().parent / "clock"
SKETCHES, TRAINING = 1, 2
ROUNDS = SKETCHES + TRAINING


def a_plan(name: str, secure: SecurePlan | None = None, **of_round: Any) -> Plan:
    """A tiny plan. Its epsilon is small, so that the sites can take part in many runs."""
    plan = load_plan(Options(small=True))
    return plan.model_copy(
        update={
            "name": name,
            "aggregation": "plain" if secure is None else "secure",
            "secure": secure or SecurePlan(),
            "privacy": plan.privacy.model_copy(
                update={"sketch_steps": SKETCHES, "rounds": TRAINING, "epsilon": 0.5}
            ),
            "round": plan.round.model_copy(
                update={"lease_s": LEASE_S, "deadline_s": 60.0, "max_attempts": 5, **of_round}
            ),
        }
    )


@dataclass
class World:
    """The running federation."""

    folder: Path
    processes: Processes
    database: Postgres
    broker: Valkey
    proxy: Proxy
    store: Disk
    sites: dict[str, Disk]  # of the train worker and of the agent
    ports: dict[str, int]
    pepper: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    main: str = COORDINATOR  # which of the two coordinators is up
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    parties: dict[str, Party] = field(default_factory=dict)
    everybody: list[Member] = field(default_factory=list)
    operator: CoordinatorClient = field(init=False, repr=False)

    @property
    def store_url(self) -> str:
        return self.store.folder.resolve().as_uri()

    def member(self, name: str) -> Member:
        return next(each for each in self.members if each.name == name)

    @property
    def members(self) -> list[Member]:
        """Of a run that does not say otherwise."""
        return [each for each in self.everybody if each.name != SPARE]

    @property
    def alone(self) -> Member:
        """The client whose site runs an agent."""
        return next(each for each in self.members if each.name not in MANAGED)

    def members_of(self, process: str) -> list[Member]:
        """The clients that the train worker, or the agent, works for."""
        return [each for each in self.everybody if (each.name in MANAGED) == (process == TRAIN)]

    # --- processes ---

    def start(self, name: str, **settings: str) -> None:
        """Start one process, without waiting until it is ready."""
        arguments = {
            COORDINATOR: ["serve"],
            REPLICA: ["serve"],
            TRAIN: ["worker", "run", "--queue", QUEUE_TRAIN],
            SUM: ["worker", "run", "--queue", QUEUE_COORDINATOR],
            AGENT: ["agent", "run"],
        }[name]
        command = [sys.executable, "-m", "core.cli", *arguments]
        self.processes.start(name, command, {**self._environment(name), **settings})

    def _environment(self, name: str) -> dict[str, str]:
        broker = {"FHV_BROKER_URL": self.broker.url}
        store = {"FHV_OBJECT_STORE_URL": self.store_url}
        if name in (COORDINATOR, REPLICA):
            return {
                **bare_environment(),
                **SETTINGS,
                **broker,
                **store,
                "FHV_PORT": str(self.ports[name]),
                "FHV_DATABASE_URL": self.database.url,
                "FHV_TOKEN_PEPPER": self.pepper,
            }
        own = {
            TRAIN: {**broker, "FHV_SITE_CONFIG": str(self.parties[TRAIN].config)},
            AGENT: {"FHV_SITE_CONFIG": str(self.parties[AGENT].config)},
            SUM: {**broker, **store},
        }[name]
        return {
            **bare_environment(),
            **own,
            "FHV_COORDINATOR_URL": self.proxy.url(name),
            "FHV_TOKEN": self.tokens[name],
            "FHV_DEVICE": "cpu",
        }

    def pid(self, name: str) -> int:
        return next(child.pid for child in self.processes.running if child.name == name)

    def freeze(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGCONT)

    def kill(self, name: str) -> None:
        self.processes.kill(name)

    def is_up(self, name: str) -> bool:
        return any(child.name == name for child in self.processes.running)

    def add_coordinator(self) -> None:
        """The other one, too: requests now go to both in turn."""
        other = REPLICA if self.main == COORDINATOR else COORDINATOR
        if not self.is_up(other):
            self.start(other)
            self.wait_ready(other)
        self.proxy.upstreams = [self.ports[self.main], self.ports[other]]

    def follow_the_other(self) -> None:
        """From now on the other coordinator is the only one."""
        self.main = REPLICA if self.main == COORDINATOR else COORDINATOR
        self.proxy.upstreams = [self.ports[self.main]]

    def settle(self) -> None:
        """Until no site has anything left to say, and every process is up and idle."""
        self.wait(
            "the sites to deliver or lose what they have begun",
            lambda: True if not any(_unsettled(each) for each in self.everybody) else None,
            state=lambda: str({each.name: _unsettled(each) for each in self.everybody}),
        )
        self.wait_ready(self.main)

    def situation(self, run_id: str) -> str:
        return federation.situation(self.operator, run_id)

    def wait_ready(self, name: str) -> None:
        last = "no answer yet"
        url = f"http://127.0.0.1:{self.ports[name]}"
        with CoordinatorClient(url, None, retry=Retry(attempts=1)) as client:

            def ready() -> bool | None:
                nonlocal last
                try:
                    client.ready()
                except ClientError as error:
                    last = str(error)
                    return None
                return True

            self.wait(f"{name} to be ready", ready, seconds=60.0, state=lambda: last)

    def wait(
        self,
        what: str,
        look: Callable[[], T | None],
        *,
        seconds: float = 30.0,
        state: Callable[[], str] | None = None,
    ) -> T:
        return wait_for(
            what, look, seconds=seconds, check=self.processes.check, state=state, pause_s=0.02
        )

    # --- runs ---

    def begin(
        self, secure: SecurePlan | None = None, members: Sequence[Member] = (), **of_round: Any
    ) -> str:
        """A new run of these clients (the three members), started; its id."""
        plan = a_plan(f"run-{uuid.uuid4().hex[:12]}", secure, **of_round)
        names = [member.name for member in members or self.members]
        run = self.operator.create_run(plan, names)
        self.operator.start_run(str(run["id"]))
        return str(run["id"])

    def follow(self, run_id: str, seconds: float = 60.0) -> JsonObject:
        """Wait until the run has ended, in whatever way."""
        last = "nothing yet"

        def ended() -> JsonObject | None:
            nonlocal last
            try:
                run = self.operator.run(run_id)
                last = federation.situation(self.operator, run_id)
            except (ClientError, ApiProblem) as error:
                last = str(error)
                return None
            return run if run["state"] in ("completed", "failed") else None

        return self.wait("the run to end", ended, seconds=seconds, state=lambda: last)


def _unsettled(member: Member) -> int:
    """Attempts without an outcome and updates without an answer, in the site's own ledger."""
    ledger = SiteLedger(member.state / LEDGER_FILE)
    try:
        return len(ledger.unfinished(member.name)) + len(ledger.undelivered(member.name))
    finally:
        ledger.close()


def _introduce(world: World) -> None:
    """Every client's key is known to the coordinator, and pinned at all the others' sites."""
    keys: dict[str, str] = {}
    for name in (TRAIN, AGENT):
        with CoordinatorClient(world.proxy.url(name), world.tokens[name]) as coordinator:
            for member in world.members_of(name):
                with Site.open(member.state) as site:
                    keys[member.name] = key_of(site, member.name)
                coordinator.put_identity_key(member.client_id, keys[member.name])
    for party in world.parties.values():
        peers.pin(load_site(party.config).client[0], keys)


def _made(folder: Path, exits: ExitStack) -> World:
    database = exits.enter_context(postgres(folder / "pg"))
    broker = exits.enter_context(valkey(folder / "valkey"))
    store = Disk(folder / "store", "64m")  # all cells of a process may share it
    sites = {name: Disk(folder / name, "8m") for name in (TRAIN, AGENT)}
    for disk in (store, *sites.values()):
        exits.callback(disk.unmount)
    processes = exits.enter_context(Processes(folder / "logs", folder=ROOT, patience_s=5.0))
    ports = {COORDINATOR: embedded.free_port(), REPLICA: embedded.free_port()}
    proxy = exits.enter_context(Proxy([TRAIN, SUM, AGENT, OPERATOR], [ports[COORDINATOR]]))
    world = World(folder, processes, database, broker, proxy, store, sites, ports)
    stack = Stack(
        processes=processes,
        database_url=database.url,
        broker_url=broker.url,
        store_url=world.store_url,
        port=ports[COORDINATOR],
        external_database=False,
        pepper=world.pepper,
    )
    stack.command("db", "upgrade")
    world.start(COORDINATOR)
    admin = stack.token("admin")
    world.operator = exits.enter_context(
        CoordinatorClient(
            proxy.url(OPERATOR), admin, retry=Retry(attempts=100, total_s=40.0, longest_s=0.2)
        )
    )
    data = clusters()
    plan = a_plan("enrolment")
    # What the sites allow must last for all the runs of all cells.
    generous = plan.model_copy(
        update={"privacy": plan.privacy.model_copy(update={"epsilon": 60.0})}
    )
    of_sites = [*data.sites, replace(data.sites[0], name=SPARE)]
    clients = [Client(each.name, each, managed=each.name in MANAGED) for each in of_sites]
    for party, folder_name, managed in ((TRAIN, "managed", True), (AGENT, "alone", False)):
        own = [each for each in clients if each.managed == managed]
        world.parties[party] = write_party(
            sites[party].folder / folder_name, own, generous, data.space
        )
    world.wait_ready(COORDINATOR)
    ids, tokens = federation.enrol(world.operator, clients, generous, data.space)
    world.tokens = {AGENT: tokens[clients[2].name], TRAIN: stack.token("worker")}
    world.tokens[SUM] = world.tokens[TRAIN]
    world.everybody = [
        Member(
            each.name,
            ids[each.name],
            each.population,
            world.parties[TRAIN if each.managed else AGENT].state,
        )
        for each in clients
    ]
    _introduce(world)
    for name in (TRAIN, SUM, AGENT):
        world.start(name)
    return world


@contextmanager
def federation_in(folder: Path) -> Iterator[World]:
    with ExitStack() as exits:
        yield _made(folder, exits)
