"""A site that comes after training: real processes, the agent's command, both ledgers, the rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks.demo import federation
from benchmarks.demo.main import Options, load_plan
from benchmarks.demo.narrator import Narrator
from benchmarks.demo.sites import Client, Party, write_party
from benchmarks.demo.small import clusters
from benchmarks.demo.stack import COORDINATOR, ROOT, Stack, services
from core.federation.plan import RunSpec
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.processes import wait_for
from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_TRAIN
from worker.client import CoordinatorClient

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = 3  # two sketch steps and one training round
MIXTURES: tuple[Any, ...] = ("neutral", {"site-a": 1.0}, {"site-a": 0.3, "site-b": 0.7})


@dataclass
class Finished:
    """A completed run of two managed sites; site-c and late have records but no part in it."""

    stack: Stack
    operator: CoordinatorClient
    clients: list[Client]
    managed: Party
    alone: Party
    ids: dict[str, str]
    run_id: str
    spec: RunSpec

    def enrol(self, name: str) -> str | None:
        """Enrol a client that came later; its token if it has one of its own."""
        each = next(client for client in self.clients if client.name == name)
        ids, tokens = federation.enrol(self.operator, [each], self.spec.plan, self.spec.space)
        self.ids.update(ids)
        return tokens.get(name)

    def rows(self, mixture: Any) -> Any:
        return self.operator.synthesize(
            {"run": self.run_id, "mixture": mixture, "n": 60, "seed": 5}
        )

    def booked(self, name: str) -> list[tuple[str, int, PrivacyEvent | None]]:
        entries = self.operator.client_ledger(self.ids[name])["entries"]
        return [
            (e["kind"], e["round"], e["event"] and PrivacyEvent.model_validate(e["event"]))
            for e in entries
        ]

    def join_state(self) -> str:
        return str(self.operator.joins(self.run_id)["items"][-1]["state"])


@pytest.fixture
def finished(service_folder: Path, no_fhv_environment: None) -> Iterator[Finished]:
    folder, narrator, data = service_folder, Narrator(Console(quiet=True)), clusters()
    plan = load_plan(Options(small=True))
    plan = plan.model_copy(
        update={
            "privacy": plan.privacy.model_copy(update={"rounds": 1}),
            "round": plan.round.model_copy(update={"quorum": 2}),
            "joining": "open",
        }
    )
    founders = [Client(site.name, site, managed=True) for site in data.sites[:2]]
    late = Client("late", data.sites[0], managed=True)
    comer = Client("site-c", data.sites[2], managed=False)
    managed = write_party(folder / "managed", [*founders, late], plan, data.space)
    alone = write_party(folder / "alone", [comer], plan, data.space)
    with ExitStack() as exits:
        stack = exits.enter_context(services(folder, narrator))
        admin = stack.token("admin")
        stack.start_coordinator()
        operator = exits.enter_context(stack.client(admin))
        ids, _ = federation.enrol(operator, founders, plan, data.space)
        worker = stack.token("worker")
        stack.start_worker(QUEUE_TRAIN, worker, site=managed.config)
        stack.start_worker(QUEUE_COORDINATOR, worker)
        run = operator.create_run(plan, [client.name for client in founders])
        run_id = str(run["id"])
        operator.start_run(run_id)
        spec = RunSpec.model_validate(run["spec"])
        federation.follow(stack, operator, run_id, spec, narrator)
        clients = [*founders, late, comer]
        yield Finished(stack, operator, clients, managed, alone, ids, run_id, spec)


def _agent_join(finished: Finished, token: str, *more: str) -> subprocess.CompletedProcess[str]:
    environment = finished.stack.worker_environment(token)
    environment["FHV_SITE_CONFIG"] = str(finished.alone.config)
    command = ["agent", "join", finished.run_id, "--client", "site-c", *more]
    return subprocess.run(
        [sys.executable, "-m", "core.cli", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_site_joins_by_its_agent_through_a_kill_and_a_managed_one_by_the_queue(
    finished: Finished,
) -> None:
    before = [finished.rows(mixture) for mixture in MIXTURES]
    ledgers = [finished.booked(name) for name in ("site-a", "site-b")]
    token = finished.enrol("site-c")
    assert token is not None

    # Nobody sums: the sketch is posted, the join waits, the coordinator is killed meanwhile.
    finished.stack.processes.kill(f"worker-{QUEUE_COORDINATOR}")
    waiting = _agent_join(finished, token, "--timeout", "15")
    assert waiting.returncode == 1, waiting.stdout + waiting.stderr
    assert "the sketch is sent" in waiting.stdout
    assert "not published within the given time; round 3 is aggregating" in waiting.stderr
    finished.stack.processes.kill(COORDINATOR)
    finished.stack.start_coordinator()
    assert finished.rows({"site-a": 1.0}) == before[1]
    worker = finished.stack.token("worker")
    finished.stack.start_worker(QUEUE_COORDINATOR, worker)
    done = _agent_join(finished, token)
    assert done.returncode == 0, done.stdout + done.stderr
    event = finished.spec.event(ROUNDS)
    price = epsilon([event], finished.spec.plan.privacy.delta)
    assert "its code is known since round 3" in done.stdout
    assert f"epsilon {price:.4g} on this run" in done.stdout
    assert "/synthesize -d" in done.stdout

    # Both ledgers hold the one executed event, and nothing else.
    assert finished.booked("site-c") == [("reserve", 3, event), ("commit", 3, None)]
    own = federation.site_entries(finished.alone.state, "site-c/images")
    assert [(e.kind, e.key.round_number, e.event) for e in own] == [
        ("reserve", 3, event),
        ("commit", 3, event),
    ]
    assert [finished.booked(name) for name in ("site-a", "site-b")] == ledgers

    # A client of the train worker comes by invitation.
    assert finished.enrol("late") is None
    finished.operator.join(finished.run_id, ["late"])
    wait_for(
        "the join to be published",
        lambda: finished.join_state() == "published" or None,
        seconds=60,
        check=finished.stack.processes.check,
        state=finished.join_state,
    )
    executed = federation.site_entries(finished.managed.state, "late/images")
    assert [(e.kind, e.key.round_number) for e in executed] == [("reserve", 4), ("commit", 4)]
    assert [kind for kind, *_ in finished.booked("late")] == ["reserve", "commit"]

    # The same rows for the same seed: bit for bit under the neutral code, and within the
    # frame's float32 rounding under the codes of the clients before.
    for mixture, old in zip(MIXTURES, before, strict=True):
        new = finished.rows(mixture)
        assert new["label_ids"] == old["label_ids"]
        if mixture == "neutral":
            assert new["embeddings"] == old["embeddings"]
        np.testing.assert_allclose(new["embeddings"], old["embeddings"], atol=1e-4)
    alone, blend = finished.rows({"site-c": 1.0}), finished.rows({"site-c": 0.5, "site-a": 0.5})
    assert np.isfinite(alone["embeddings"]).all()
    assert not np.allclose(alone["embeddings"], blend["embeddings"], atol=1e-3)
    assert not np.allclose(alone["embeddings"], before[0]["embeddings"], atol=1e-3)
    spent = {each["client"]: each["epsilon"] for each in alone["receipt"]["receipt"]["per_client"]}
    assert (spent["site-c"], spent["late"]) == (price, price)
    assert spent["site-a"] == before[0]["receipt"]["receipt"]["per_client"][0]["epsilon"] > price
    run = finished.operator.run(finished.run_id)
    assert (run["state"], run["rounds_published"], run["joins_published"]) == (
        "completed",
        ROUNDS,
        2,
    )
