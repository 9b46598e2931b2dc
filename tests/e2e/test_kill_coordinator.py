"""kill -9 of the coordinator in the middle of a training round; started again, the run ends.

What must hold then is in ``tests.ledgers``; tests/faults kills everything else, everywhere else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.demo import federation
from benchmarks.demo.main import Federation, Options, load_plan
from benchmarks.demo.narrator import Narrator
from benchmarks.demo.sites import Client, write_party
from benchmarks.demo.small import clusters
from benchmarks.demo.stack import AGENT, COORDINATOR, TRAIN_WORKER, Stack, services
from core.federation.plan import Plan, RunSpec
from core.processes import wait_for
from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_TRAIN
from tests.ledgers import Member, check_completed, check_sums
from worker.client import CoordinatorClient
from worker.errors import ClientError

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

SKETCHES, TRAINING = 2, 6
ROUNDS = SKETCHES + TRAINING
KILL_IN = 4


@dataclass
class Running:
    """A federation with all its processes up and a run that has been started."""

    stack: Stack
    fed: Federation
    narrator: Narrator
    operator: CoordinatorClient
    ids: dict[str, str]
    agent_token: str
    run_id: str
    spec: RunSpec


def _plan() -> Plan:
    plan = load_plan(Options(small=True))
    # Short leases: what a killed process held comes back soon.
    return plan.model_copy(
        update={
            "privacy": plan.privacy.model_copy(
                update={"sketch_steps": SKETCHES, "rounds": TRAINING}
            ),
            "round": plan.round.model_copy(update={"lease_s": 4.0, "deadline_s": 90.0}),
        }
    )


@pytest.fixture
def running(service_folder: Path, no_fhv_environment: None) -> Iterator[Running]:
    folder = service_folder
    narrator = Narrator(Console(quiet=True))
    data, plan = clusters(), _plan()
    clients = [Client(site.name, site, managed=i < 2) for i, site in enumerate(data.sites)]
    managed = write_party(folder / "managed", clients[:2], plan, data.space)
    alone = write_party(folder / "alone", clients[2:], plan, data.space)
    fed = Federation(data, plan, clients, managed, alone)
    with ExitStack() as exits:
        stack = exits.enter_context(services(folder, narrator))
        admin = stack.token("admin")
        stack.start_coordinator()
        operator = exits.enter_context(stack.client(admin))
        ids, tokens = federation.enrol(operator, clients, plan, data.space)
        worker = stack.token("worker")
        stack.start_worker(QUEUE_TRAIN, worker, site=managed.config)
        stack.start_worker(QUEUE_COORDINATOR, worker)
        stack.start_agent(tokens["site-c"], alone.config)
        run = operator.create_run(plan, [client.name for client in clients])
        operator.start_run(str(run["id"]))
        spec = RunSpec.model_validate(run["spec"])
        yield Running(stack, fed, narrator, operator, ids, tokens["site-c"], str(run["id"]), spec)


def _child(running: Running, name: str) -> int:
    return next(child.pid for child in running.stack.processes.running if child.name == name)


def _wait_for_open_round(running: Running, number: int) -> None:
    """Until this round is open: some of its work is handed out, none of it is aggregated."""

    def look() -> bool | None:
        try:
            round_ = running.operator.round(running.run_id, number)
        except ClientError:
            return None
        assert round_["state"] != "failed", round_["why"]
        return True if round_["state"] in ("open", "closing", "aggregating", "published") else None

    wait_for(
        f"round {number} to open",
        look,
        seconds=120,
        check=running.stack.processes.check,
        state=lambda: federation.situation(running.operator, running.run_id),
        pause_s=0.05,
    )


def _check_ledgers(running: Running) -> None:
    members = [
        Member(
            client.name,
            running.ids[client.name],
            client.population,
            running.fed.party(client).state,
        )
        for client in running.fed.clients
    ]
    accounts = check_completed(running.operator, running.run_id, members, ROUNDS)
    stack = running.stack
    assert check_sums(stack.database_url, stack.store_url, running.run_id, accounts) == ROUNDS


def _follow(running: Running) -> None:
    federation.follow(
        running.stack, running.operator, running.run_id, running.spec, running.narrator
    )


def _round_that_waits_for(running: Running, client: str) -> int:
    """Until a training round is open and only this client's update is missing; its number."""

    def look() -> int | None:
        run = running.operator.run(running.run_id)
        round_ = running.operator.round(running.run_id, int(run["current_round"]))
        waits = round_["state"] == "open" and round_["missing_clients"] == [client]
        return int(round_["number"]) if waits and round_["number"] >= SKETCHES else None

    return wait_for(
        f"a round that waits for {client}",
        look,
        seconds=60,
        check=running.stack.processes.check,
        state=lambda: federation.situation(running.operator, running.run_id),
    )


def test_kill_9_of_the_coordinator_while_a_round_waits_for_a_site(running: Running) -> None:
    """The agent is frozen, so the kill falls surely between two updates of one round."""
    _wait_for_open_round(running, KILL_IN - 1)
    agent = _child(running, AGENT)
    os.kill(agent, signal.SIGSTOP)
    number = _round_that_waits_for(running, "site-c")
    running.stack.processes.kill(COORDINATOR)
    running.stack.start_coordinator()
    assert _round_that_waits_for(running, "site-c") == number
    assert federation.published(running.operator, running.run_id) == number
    os.kill(agent, signal.SIGCONT)
    _follow(running)
    _check_ledgers(running)


def test_kill_9_of_the_coordinator_at_full_speed_three_times(running: Running) -> None:
    """Nothing is frozen: each kill falls wherever the round happens to be."""
    for number in (1, KILL_IN, ROUNDS - 1):
        _wait_for_open_round(running, number)
        running.stack.processes.kill(COORDINATOR)
        running.stack.start_coordinator()
    _follow(running)
    _check_ledgers(running)


def test_kill_9_of_the_train_worker_and_of_the_agent(running: Running) -> None:
    """What they had reserved is lost or resent, never applied twice."""
    _wait_for_open_round(running, KILL_IN)
    running.stack.processes.kill(TRAIN_WORKER)
    running.stack.processes.kill(AGENT)
    running.stack.start_worker(
        QUEUE_TRAIN, running.stack.token("worker"), site=running.fed.managed.config
    )
    running.stack.start_agent(running.agent_token, running.fed.alone.config)
    _follow(running)
    _check_ledgers(running)
