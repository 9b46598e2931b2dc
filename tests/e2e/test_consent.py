"""A site that asks a person: real processes wait for the word, given by command beside them.

Two clients over one population: an agent with its own token, and a managed one of the train worker,
which share the site's state folder. Both ask; what the first one spends is in what the second one
is shown.
"""

from __future__ import annotations

import json
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
from benchmarks.demo.small import clusters
from benchmarks.demo.stack import AGENT, ROOT, TRAIN_WORKER, Stack, services
from core.federation.plan import RunSpec
from core.privacy.accounting import epsilon
from core.processes import wait_for
from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_TRAIN
from worker.client import CoordinatorClient

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

POPULATION = "hospital/everybody"
OWN, LENT = "own", "lent"


@dataclass
class Asking:
    """A started run; nobody at the site has said anything."""

    stack: Stack
    operator: CoordinatorClient
    config: Path
    state: Path
    tokens: dict[str, str]
    ids: dict[str, str]
    run_id: str
    spec: RunSpec

    def command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = self.stack.worker_environment(self.tokens[name])
        environment["FHV_SITE_CONFIG"] = str(self.config)
        return subprocess.run(
            [sys.executable, "-m", "core.cli", "agent", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def plans(self, name: str) -> list[dict[str, Any]]:
        done = self.command(name, "plans", "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["plans"])

    def log(self, process: str) -> str:
        child = next(c for c in self.stack.processes.running if c.name == process)
        return child.log.read_text()

    def kinds(self, name: str) -> list[str]:
        """Entries of this client on the account that both share."""
        entries = self.operator.client_ledger(self.ids[name])["entries"]
        return [entry["kind"] for entry in entries if entry["client"] == name]

    def wait(self, what: str, look: Any) -> None:
        wait_for(
            what,
            look,
            seconds=90,
            check=self.stack.processes.check,
            state=lambda: federation.situation(self.operator, self.run_id),
        )


@pytest.fixture
def asking(service_folder: Path, no_fhv_environment: None) -> Iterator[Asking]:
    folder, data = service_folder, clusters()
    plan = load_plan(Options(small=True))
    plan = plan.model_copy(
        update={
            "privacy": plan.privacy.model_copy(update={"rounds": 0}),
            "round": plan.round.model_copy(update={"quorum": 2, "deadline_s": 120.0}),
        }
    )
    limit = 3 * plan.privacy.epsilon
    records = folder / "records.npz"
    names = np.array(data.space.classes)[data.sites[0].train_y]
    np.savez(records, x=data.sites[0].train_x, y=names)
    state = folder / "state"
    lines = ["[site]", f'state_dir = "{state}"']
    for name in (OWN, LENT):
        lines += ["[[client]]", f'name = "{name}"', f'data = "{records}"', 'consent = "ask"',
                  f'unit = "{plan.privacy.unit}"', f'population = "{POPULATION}"',
                  f"max_epsilon = {limit}", f"delta = {plan.privacy.delta}",
                  "min_noise_multiplier = 0.3"]  # fmt: skip
    config = folder / "site.toml"
    config.write_text("\n".join(lines))
    with ExitStack() as exits:
        stack = exits.enter_context(services(folder, Narrator(Console(quiet=True))))
        admin = stack.token("admin")
        stack.start_coordinator()
        operator = exits.enter_context(stack.client(admin))
        operator.create_space(data.space)
        tokens, ids = {LENT: stack.token("worker")}, {}
        for name in (OWN, LENT):
            made = operator.enrol_client(
                name=name, space=data.space.name, site="hospital", population=POPULATION,
                unit=plan.privacy.unit, managed=name == LENT, epsilon=limit,
                delta=plan.privacy.delta,
            )  # fmt: skip
            ids[name] = str(made.client["id"])
            if made.token is not None:
                tokens[name] = made.token
        stack.start_worker(QUEUE_TRAIN, tokens[LENT], site=config)
        stack.start_worker(QUEUE_COORDINATOR, tokens[LENT])
        stack.start_agent(tokens[OWN], config)
        run = operator.create_run(plan, [OWN, LENT])
        operator.start_run(str(run["id"]))
        spec = RunSpec.model_validate(run["spec"])
        yield Asking(stack, operator, config, state, tokens, ids, str(run["id"]), spec)


def test_nothing_happens_before_a_person_has_said_so(asking: Asking) -> None:
    for process in (AGENT, TRAIN_WORKER):
        asking.wait(
            f"{process} to ask", lambda p=process: "plan_awaits_consent" in asking.log(p) or None
        )
    opened = asking.operator.round(asking.run_id, 0)
    assert {m["client"]: m["standing"] for m in opened["clients"]} == {OWN: "asked", LENT: "asked"}
    assert asking.kinds(OWN) == asking.kinds(LENT) == []
    assert federation.site_entries(asking.state, POPULATION) == []

    delta = asking.spec.plan.privacy.delta
    one, two = (epsilon(asking.spec.events() * n, delta) for n in (1, 2))
    (shown,) = asking.plans(OWN)
    assert (shown["client"], shown["state"], shown["policy"]) == (OWN, "asked", "allows")
    assert (shown["epsilon_plan"], shown["epsilon_spent"], shown["epsilon_after"]) == (one, 0, one)
    approved = asking.command(OWN, "approve", asking.spec.plan.name)
    assert approved.returncode == 0, approved.stderr
    asking.wait("the first client's sketch", lambda: "commit" in asking.kinds(OWN) or None)
    assert asking.kinds(LENT) == []

    # The worker's token speaks for the managed client; the account is the same.
    spent = epsilon([asking.spec.event(0)], delta)
    (shown,) = asking.plans(LENT)
    assert (shown["client"], shown["epsilon_plan"]) == (LENT, one)
    assert shown["epsilon_spent"] == spent
    assert shown["epsilon_after"] == epsilon([asking.spec.event(0), *asking.spec.events()], delta)
    (asked,) = asking.operator.plans(asking.ids[LENT], state="asked")
    assert (asked.epsilon_spent, asked.epsilon_after) == (spent, two)
    approved = asking.command(LENT, "approve", asking.run_id)
    assert approved.returncode == 0, approved.stderr
    assert f"goes from {spent:.4g} to" in approved.stdout

    def completed() -> bool | None:
        run = asking.operator.run(asking.run_id)
        assert run["state"] in ("running", "completed"), run["why"]
        return run["state"] == "completed" or None

    asking.wait("the run to be completed", completed)
    rounds = asking.spec.last_round + 1
    for name in (OWN, LENT):
        assert asking.kinds(name).count("commit") == rounds
    entries = federation.site_entries(asking.state, POPULATION)
    assert sum(entry.kind == "commit" for entry in entries) == 2 * rounds
    decided = asking.operator.plans(asking.ids[OWN])
    assert [(p.state, p.decided_by) for p in decided] == [("approved", "person")]
