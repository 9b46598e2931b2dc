"""Secure sums end to end: a real coordinator, agents' loops and Celery tasks in one sum."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from core.federation.secure_sum import ALL_SITES
from core.federation.updates import TENSOR
from core.models.frame import Frame
from core.privacy.views import views_of_plan
from core.storage import ObjectStore
from core.training.compute import Compute
from core.wire import tensors
from core.wire.jobs import QUEUE_TRAIN, TASK_CONSENT, TASK_STEP, TASK_TRAIN
from tests.api.support import a_plan
from tests.worker.real import DELTA, Federation, commands, federation, issue
from worker import tasks
from worker.agent import join, loop, peers
from worker.agent.consent import consider
from worker.agent.join import join_run
from worker.agent.plans import shown
from worker.agent.site import Site
from worker.agent.sum_identity import key_of
from worker.aggregation import carry_out
from worker.cli import agent_app
from worker.client import CoordinatorClient
from worker.config import SiteConfig, WorkerSettings

AGENTS, MANAGED = ("site-a", "site-b"), ("site-c", "site-d")
EVERYBODY = (*AGENTS, *MANAGED)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(loop, "_LONGEST_PAUSE_S", 0.2)


class Hospital:
    """Two sites with agents, one worker that serves two managed clients, all keys pinned."""

    def __init__(self, fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fed = fed
        self.sites = {name: self._site(name, name) for name in AGENTS}
        self.managed = self._site("managed", *MANAGED)
        self.stack = ExitStack()
        self.stopper = loop.Stopper()
        self.failed: list[BaseException] = []
        for name in AGENTS:
            fed.enrol(name, f"{name}/all")
        for name in MANAGED:
            made = fed.operator.enrol_client(
                name=name, space="tiny", site="managed", population=f"{name}/all", unit="record",
                managed=True, epsilon=50.0, delta=DELTA,
            )  # fmt: skip
            fed.ids[name] = str(made.client["id"])
        keys = {}
        for name in EVERYBODY:
            with Site.open(self.config(name).state_dir) as site:
                keys[name] = key_of(site, name)
            if name in AGENTS:
                with fed.client(name) as coordinator:
                    coordinator.put_identity_key(fed.ids[name], keys[name])
            else:
                fed.operator.put_identity_key(fed.ids[name], keys[name])
        for name in EVERYBODY:
            mine = self.config(name).require(name)
            peers.pin(mine, {other: key for other, key in keys.items() if other != name})
        worker = self.stack.enter_context(CoordinatorClient(fed.url, issue(fed.settings, "worker")))
        monkeypatch.setattr(tasks, "coordinator", lambda: worker)
        monkeypatch.setattr(tasks, "site_config", lambda: self.managed)
        monkeypatch.setattr(tasks, "settings", lambda: WorkerSettings(device="cpu"))

    def config(self, name: str) -> SiteConfig:
        return self.sites.get(name, self.managed)

    def _site(self, state: str, *names: str) -> SiteConfig:
        found = []
        for name in names:
            (client,) = self.fed.config(state, f"{name}/all", name).client
            path = self.fed.folder / f"peers-{name}.json"
            found.append(client.model_copy(update={"peers": path}))
        section = self.fed.config(state, f"{names[0]}/all", names[0]).site
        return SiteConfig(site=section, client=tuple(found))

    def start(self, name: str, **changes: Any) -> str:
        rules = {"quorum": 3, "deadline_s": 60.0, "lease_s": 30.0, "max_attempts": 3}
        plan = a_plan(
            name, round=rules, aggregation="secure",
            **{"secure": {"drop": 1, "collude": 1, "step_s": 20.0}, **changes},
        )  # fmt: skip
        run = self.fed.operator.create_run(plan, EVERYBODY)
        self.fed.operator.start_run(str(run["id"]))
        return str(run["id"])

    # --- who works ---

    def agents(self, names: tuple[str, ...] = AGENTS) -> None:
        for name in names:
            thread = threading.Thread(target=self._agent, args=(name,), daemon=True)
            thread.start()
            self.stack.callback(thread.join, 20)

    def _agent(self, name: str) -> None:
        try:
            with self.fed.client(name) as coordinator:
                loop.run_agent(
                    coordinator, self.sites[name], compute=Compute(device="cpu"), poll_s=1.0,
                    stopper=_Quiet(self.stopper.event),
                )  # fmt: skip
        except BaseException as error:
            self.failed.append(error)

    def messages(self, without: tuple[str, ...] = ()) -> None:
        """Carry out what the outbox holds for the queue ``train``, as a Celery worker would."""
        run = {TASK_TRAIN: tasks.train, TASK_CONSENT: tasks.consent, TASK_STEP: tasks.sum_step}
        rows = self.fed.sql(
            "DELETE FROM outbox WHERE queue = %s RETURNING id, task, subject", QUEUE_TRAIN
        )
        for _, task, subject in sorted(rows):
            if task == TASK_STEP and self._of(str(subject)) in without:
                continue
            run[task].apply(args=(str(subject),), throw=True)

    def _of(self, step: str) -> str:
        rows = self.fed.sql(
            "SELECT c.name FROM sum_steps s JOIN clients c ON c.id = s.client_id WHERE s.id = %s",
            step,
        )
        return str(rows[0][0])

    def until(self, run: str, *states: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
        end = time.monotonic() + 60
        while True:
            self.messages(without)
            for (job,) in self.fed.sql("SELECT id FROM jobs WHERE state = 'ready'"):
                claimed = self.fed.worker.claim_job(str(job))
                store = self.fed.settings.object_store_url
                carry_out(claimed, self.fed.worker, store, stop=threading.Event())
            assert not self.failed, self.failed
            found = self.fed.operator.run(run)
            if found["state"] in states:
                return found
            assert time.monotonic() < end, (found["state"], self.fed.operator.rounds(run))
            time.sleep(0.05)


class _Quiet(loop.Stopper):
    """Without signals, which only a process's first thread can have."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.event = event

    def listening(self) -> Any:
        return ExitStack()


@pytest.fixture
def hospital(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hospital]:
    with federation(database_url, tmp_path) as fed:
        made = Hospital(fed, monkeypatch)
        try:
            yield made
        finally:
            made.stopper.event.set()
            made.stack.close()


def _ledgers(hospital: Hospital, name: str) -> tuple[list[str], list[str]]:
    """Kinds of entries: the site's own, and the coordinator's."""
    with Site.open(hospital.config(name).state_dir) as site:
        own = [entry.kind for entry in site.ledger.entries(f"{name}/all")]
    rows = hospital.fed.sql(
        "SELECT kind FROM ledger_entries WHERE client_id = %s ORDER BY id", hospital.fed.ids[name]
    )
    return own, [str(row[0]) for row in rows]


def test_agents_and_workers_sum_together(hospital: Hospital) -> None:
    run = hospital.start("secure", privacy={"rounds": 2})
    hospital.agents()
    found = hospital.until(run, "completed", "failed")
    assert found["state"] == "completed", found["why"]
    rounds = found["rounds_published"]
    assert rounds == found["rounds_planned"] >= 3
    for name in EVERYBODY:
        own, theirs = _ledgers(hospital, name)
        assert own == theirs == ["reserve", "commit"] * rounds
    model = hospital.fed.operator.model(run)
    frame = Frame.from_bytes(hospital.fed.operator.download(model["frame"]["digest"]))
    assert list(frame.clients) == [ALL_SITES]
    assert model["clients"] == []
    # What the coordinator has of a client is a masked vector: random bytes, no update.
    rows = hospital.fed.sql("SELECT digest FROM updates WHERE round_number = 0 ORDER BY client_id")
    store = ObjectStore(hospital.fed.settings.object_store_url)
    bodies = [store.get(str(row[0])) for row in rows]
    assert len(bodies) == 4
    for body in bodies:
        with pytest.raises(tensors.TensorFileError):
            tensors.unpack(body)[0][TENSOR]
        counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
        # Uniform bytes: chi-square with 255 degrees of freedom, 7 standard deviations wide.
        expected = len(body) / 256
        assert abs(np.sum((counts - expected) ** 2 / expected) - 255) < 7 * np.sqrt(510)
    table = hospital.fed.operator.synthesize_table({"run": "secure", "n": 50, "format": "parquet"})
    assert len(table.body) > 0


def test_a_site_that_goes_missing_does_not_stop_the_sum(hospital: Hospital) -> None:
    run = hospital.start("one-missing", privacy={"rounds": 0}, secure={
        "drop": 1, "collude": 1, "step_s": 1.5,
    })  # fmt: skip
    hospital.agents()
    found = hospital.until(run, "completed", "failed", without=("site-d",))
    assert found["state"] == "completed", found["why"]
    assert _ledgers(hospital, "site-d") == ([], []), "nothing was spent by who shared nothing"
    assert _ledgers(hospital, "site-c")[0] == ["reserve", "commit"] * found["rounds_published"]


def test_with_too_few_the_run_fails_and_says_who_is_missing(hospital: Hospital) -> None:
    run = hospital.start("two-missing", privacy={"rounds": 0}, secure={
        "drop": 1, "collude": 1, "step_s": 2.0,
    })  # fmt: skip
    hospital.agents()
    found = hospital.until(run, "completed", "failed", without=("site-c", "site-d"))
    assert found["state"] == "failed"
    assert "site-c" in found["why"]
    for name in EVERYBODY:
        assert _ledgers(hospital, name) == ([], [])


def test_a_founding_client_joins_if_its_site_wants_it(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator asks it no more, and its agent is given the order at once: the word that the
    command has written down lets it pass. Whose site said nothing refuses, and spends nothing."""
    monkeypatch.setattr(join, "_PAUSE_S", 0.1)
    run = hospital.start("joined", privacy={"rounds": 0}, joining="open")
    hospital.agents()
    assert hospital.until(run, "completed", "failed")["state"] == "completed"
    before = _ledgers(hospital, "site-b")
    hospital.fed.operator.join(run, ["site-b"])
    end = time.monotonic() + 30
    while hospital.fed.operator.joins(run)["items"][-1]["state"] != "failed":
        hospital.until(run, "completed")
        assert time.monotonic() < end
    assert _ledgers(hospital, "site-b")[0] == before[0]

    done: list[Any] = []

    def command() -> None:
        try:
            with hospital.fed.client("site-a") as coordinator:
                done.append(join_run(coordinator, hospital.config("site-a"), run, "site-a"))
        except BaseException as error:
            hospital.failed.append(error)

    thread = threading.Thread(target=command, daemon=True)
    thread.start()
    while thread.is_alive():
        hospital.until(run, "completed")
        assert time.monotonic() < end
        time.sleep(0.05)
    assert hospital.failed == []
    assert done[0].clients == ("site-a",)
    own, theirs = _ledgers(hospital, "site-a")
    assert own == theirs
    assert own == [*before[0], "reserve", "commit"]


# --- the commands with which people tell one another their keys ---


@pytest.fixture
def agent(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    plain = commands(hospital.fed, monkeypatch)

    def run(name: str, *arguments: str) -> Result:
        found = plain(hospital.config(name), hospital.fed.tokens[name], "--help")
        assert found.exit_code == 0
        path = hospital.fed.folder / "site.toml"
        text = path.read_text()
        path.write_text(f'{text}\npeers = "peers-{name}.json"\n')
        return CliRunner().invoke(agent_app, list(arguments))

    return run


def test_fingerprints_are_compared_before_keys_are_pinned(
    hospital: Hospital, agent: Callable[..., Result]
) -> None:
    run = hospital.fed.operator.create_run(
        a_plan("keys", aggregation="secure", round={"quorum": 3}), EVERYBODY
    )["id"]
    path = hospital.fed.folder / "peers-site-a.json"
    right = json.loads(path.read_text())
    path.unlink()
    shown = json.loads(agent("site-b", "identity", "show", "--json").output)["keys"][0]
    assert shown["key"] == right["site-b"]
    wrong = agent("site-a", "identity", "peers", run, "--trust", "site-b=0000 1111")
    assert wrong.exit_code == 1
    assert "somebody may stand between" in wrong.output
    assert not path.exists()
    assert agent("site-a", "identity", "peers", run).exit_code == 2, "nobody is there to ask"
    stranger = agent("site-a", "identity", "peers", run, "--trust", "site-x=0000")
    assert "no other client of this run" in stranger.output
    one = agent("site-a", "identity", "peers", run, "--trust", f"site-b={shown['fingerprint']}")
    assert one.exit_code == 1, "two are left"
    assert "not pinned: site-c, site-d" in one.output
    rest = agent("site-a", "identity", "peers", run, "--yes")
    assert rest.exit_code == 0, rest.output
    assert json.loads(path.read_text()) == right
    path.write_text(json.dumps(right | {"site-c": "33" * 32}))
    changed = agent("site-a", "identity", "peers", run, "--yes")
    assert "another key of 'site-c'" in changed.output
    registered = agent("site-a", "identity", "register")
    assert registered.exit_code == 0, registered.output


# --- consent ---


def test_consent_names_against_whom_the_price_holds(
    hospital: Hospital, agent: Callable[..., Result]
) -> None:
    run = hospital.start("priced", privacy={"rounds": 0})
    (plan,) = json.loads(agent("site-a", "plans", "--json").output)["plans"]
    views = {view["who"]: view["epsilon"] for view in plan["views"]}
    with hospital.fed.client("site-a") as coordinator:
        (offer,) = coordinator.plans(hospital.fed.ids["site-a"], state="asked")
    assert views == {view.who: view.epsilon for view in views_of_plan(offer.spec, 4)}
    assert plan["epsilon_plan"] == views["booked"]
    # 3 of 4 vectors are there at the least; one is of a colluder: 2 make up the promised noise.
    assert views["coordinator"] < views["client"] <= views["booked"] < views["everybody"]
    said = agent("site-a", "plans").output
    assert f"epsilon {views['booked']:.4g} holds against the coordinator and up to 1" in said
    assert f"{views['everybody']:.4g} against everybody else together" in said
    approved = agent("site-a", "approve", run)
    assert approved.exit_code == 0, approved.output
    assert "colluding clients of 4" in approved.output


def test_a_plan_waits_until_its_keys_were_compared(
    hospital: Hospital, agent: Callable[..., Result]
) -> None:
    """A policy's no would be for good; nobody has said anything against these keys yet."""
    run = hospital.start("waiting", privacy={"rounds": 0})
    config = hospital.config("site-a").require("site-a")
    assert config.peers is not None
    right = config.peers.read_text()
    config.peers.write_text(json.dumps({"site-b": json.loads(right)["site-b"]}))
    name, site_config = "site-a", hospital.config("site-a")
    with hospital.fed.client(name) as coordinator, Site.open(site_config.state_dir) as site:
        (offer,) = coordinator.plans(hospital.fed.ids[name], state="asked")
        assert not consider(offer, config, site.ledger, coordinator)
        config.peers.write_text("[]")
        assert not consider(offer, config, site.ledger, coordinator), "no file of keys"
        config.peers.write_text(json.dumps({"site-b": json.loads(right)["site-b"]}))
        assert site.ledger.word(run, name) is None
        (seen,) = shown(coordinator, site_config, site, name)
        assert seen.refusal is not None
        assert seen.refusal.field == "peers"
        assert "site-c, site-d" in seen.refusal.message
    refused = agent("site-a", "approve", run)
    assert refused.exit_code == 1
    assert f"identity peers {run} --client site-a" in refused.output
    config.peers.write_text(right)
    with hospital.fed.client(name) as coordinator, Site.open(site_config.state_dir) as site:
        assert consider(offer, config, site.ledger, coordinator)
        assert [each.state for each in coordinator.plans(hospital.fed.ids[name])] == ["approved"]
