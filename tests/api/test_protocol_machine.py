"""The protocol as a hypothesis state machine: any operation, in any order, with any fault.

Sites poll, send, resend, send nonsense, fall silent; messages are duplicated, reordered, dropped;
replicas die before or after any commit; people pause, resume, cancel, revoke; time jumps. After
every step the books are checked in the database itself, and in the end everybody behaves and every
run must end.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, event
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from api.config import Settings
from core.federation import rule as plan_rule
from core.federation.plan import RunSpec
from core.federation.updates import TENSOR
from core.wire import tensors
from core.wire.messages import LEASE_HEADER
from tests.api.support import calibrate, update_body
from tests.api.world import Fault, World
from tests.conftest import empty

AGENTS = ("site-a", "site-b", "site-c")
MANAGED = "site-m"
SITES = (*AGENTS, MANAGED)
BUDGET = 8.0  # two plans of epsilon 2 and some lost attempts, not any number of them
RUNS = ("run-1", "run-2")
faults = st.sampled_from(("none", "none", "none", "before-commit", "after-commit"))
sites = st.sampled_from(SITES)
recent = st.integers(0, 7)


class Protocol(RuleBasedStateMachine):
    make: Any = None  # set by the test: a fresh world

    def __init__(self) -> None:
        super().__init__()
        self.world: World = self.make()
        self.orders: list[dict[str, Any]] = []
        self.runs: list[str] = []

    def teardown(self) -> None:
        try:
            if self.runs:
                self._everybody_behaves()
        finally:
            self.world.close()

    # --- setting up ---

    @initialize()
    def two_runs(self) -> None:
        world = self.world
        coordinator = world.replicas[0].coordinator
        world.run(coordinator.enrol(*AGENTS, epsilon=BUDGET))
        world.run(coordinator.enrol(MANAGED, epsilon=BUDGET, managed=True))
        for name in RUNS:
            run = world.run(
                coordinator.run(
                    *SITES,
                    name=name,
                    privacy={"rounds": 1, "epsilon": 2.0},
                    round={"quorum": 2, "deadline_s": 300.0, "extension_s": 60.0},
                )
            )
            self.runs.append(run["id"])

    # --- sites ---

    @rule(name=sites, fault=faults)
    def asks_for_work(self, name: str, fault: Fault) -> None:
        """An agent polls, a worker claims; whoever did not see the answer asks again later."""
        if name == MANAGED:
            found = self.world.sql("SELECT id FROM work_items WHERE state = 'ready'")
            for (work_id,) in found[:1]:
                self._claim(str(work_id), fault)
            return
        path = f"/v1/clients/{self.world.clients[name]}/work"
        lived, response = self.world.at_some_replica(lambda c: c.call("GET", path, name), fault)
        if not lived:
            return
        assert response.status_code in (200, 204, 401), response.text
        if response.status_code == 200:
            self.orders.append(response.json())

    def _claim(self, work_id: str, fault: Fault) -> None:
        path = f"/v1/work/{work_id}/claim"
        lived, response = self.world.at_some_replica(
            lambda c: c.call("POST", path, "worker"), fault
        )
        if lived:
            assert response.status_code in (200, 404, 409), response.text
            if response.is_success:
                self.orders.append(response.json())

    def _recent(self, back: int) -> dict[str, Any]:
        return self.orders[-1 - min(back, len(self.orders) - 1)]

    def _send(
        self,
        order: dict[str, Any],
        body: bytes | None = None,
        fault: Fault = "none",
        **options: Any,
    ) -> Any:
        who = "worker" if order["client"] == MANAGED else order["client"]
        lived, response = self.world.at_some_replica(
            lambda c: c.send(order, body, who=who, **options), fault
        )
        return response if lived else None

    @rule(names=st.lists(sites, min_size=2, max_size=4, unique=True), fault=faults)
    def sites_work(self, names: list[str], fault: Fault) -> None:
        """Ask and answer at once, as most sites do most of the time."""
        for name in names:
            before = len(self.orders)
            self.asks_for_work(name, "none")
            if len(self.orders) > before:
                self.sends_an_update(0, fault, twice=False)

    @rule(fault=faults)
    def the_worker_sums(self, fault: Fault) -> None:
        self.world.sweep()
        self.sums(silent=False, fault=fault)
        self.world.sweep(fault)

    @precondition(lambda self: self.orders)
    @rule(back=recent, fault=faults, twice=st.booleans())
    def sends_an_update(self, back: int, fault: Fault, twice: bool) -> None:
        """New or again, in time or late, under whatever lease the order had."""
        order = self._recent(back)
        self.world.executes(order)
        for _ in range(1 + twice):
            response = self._send(order, fault=fault)
            if response is None:
                continue
            assert response.status_code in (200, 201, 401, 409), response.text
            if response.is_success:
                key = (order["client"], order["run_id"], order["round_number"])
                first = self.world.accepted.setdefault(key, response.json()["digest"])
                assert response.json()["digest"] == first

    @precondition(lambda self: self.orders)
    @rule(back=recent, wrong=st.sampled_from(("nan", "silent", "layout", "garbage")))
    def sends_a_bad_update(self, back: int, wrong: str) -> None:
        order = self._recent(back)
        spec = RunSpec.model_validate(order["spec"])
        body = update_body(spec, order["round_number"], seed=77)
        content, metadata = tensors.unpack(body)
        vector = np.array(content[TENSOR])
        if wrong == "nan":
            vector[0] = np.nan
        elif wrong == "silent":
            vector *= 0.01
        elif wrong == "layout":
            metadata = {**metadata, "layout": "sha256:" + "0" * 64}
        body = b"garbage" if wrong == "garbage" else tensors.pack({TENSOR: vector}, metadata)
        self.world.executes(order)
        response = self._send(order, body)
        assert response.status_code in (401, 409, 422), response.text

    @precondition(lambda self: len(self.orders) > 1)
    @rule(back=recent, other=recent, how=st.sampled_from(("lease", "round", "body", "stranger")))
    def sends_to_the_wrong_place(self, back: int, other: int, how: str) -> None:
        """A stale or foreign lease, another plan's round, another body under the same id."""
        order, second = self._recent(back), self._recent(other)
        if how == "lease":
            response = self._send(order, lease=second["lease_token"])
            if (order["client"], order["work_id"]) != (second["client"], second["work_id"]):
                assert response.status_code != 201, response.text
            return
        if how == "round":
            moved = {**order, "round_number": order["round_number"] + 1}
            spec = RunSpec.model_validate(order["spec"])
            body = update_body(spec, order["round_number"], seed=5)
            assert self._send(moved, body).status_code in (401, 404, 409, 422)
            return
        if how == "stranger":
            assert self._send({**order, "run_id": str(uuid4())}).status_code in (401, 404, 409)
            return
        spec = RunSpec.model_validate(order["spec"])
        key = (order["client"], order["run_id"], order["round_number"])
        if key in self.world.accepted:
            body = update_body(spec, order["round_number"], seed=1234)
            assert self._send(order, body).status_code in (401, 409)

    @precondition(lambda self: self.orders)
    @rule(back=recent, action=st.sampled_from(("renew", "fail", "refuse")), fault=faults)
    def acts_on_a_lease(self, back: int, action: str, fault: Fault) -> None:
        order = self._recent(back)
        who = "worker" if order["client"] == MANAGED else order["client"]
        path = f"/v1/work/{order['work_id']}/{'renew' if action == 'renew' else 'fail'}"
        code = "plan-refused" if action == "refuse" else "site-not-ready"
        _, response = self.world.at_some_replica(
            lambda c: c.call(
                "POST",
                path,
                who,
                json={"code": code},
                headers={LEASE_HEADER: order["lease_token"]},
            ),
            fault,
        )
        if response is not None:
            assert response.status_code in (200, 204, 401, 409), response.text

    # --- the coordinator and its worker ---

    @rule(fault=faults, commits=st.integers(0, 3))
    def sweeps(self, fault: Fault, commits: int) -> None:
        self.world.sweep(fault, commits)

    @rule(silent=st.booleans(), fault=faults)
    def sums(self, silent: bool, fault: Fault) -> None:
        """Claim a job and complete it, or claim it and fall silent."""
        job_id = self.world.ready_job()
        job = self.world.claim_job(job_id) if job_id is not None else None
        if job is not None and not silent:
            self.world.complete_job(job, fault)

    @rule(seconds=st.sampled_from((1.0, 6.0, 11.0, 70.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    # --- people ---

    @rule(
        index=st.integers(0, 1),
        action=st.sampled_from(("pause", "pause", "resume", "resume", "resume", "cancel")),
        fault=faults,
    )
    def an_operator_acts(self, index: int, action: str, fault: Fault) -> None:
        path = f"/v1/runs/{self.runs[index]}/{action}"
        body = {"seconds": 90.0} if action == "pause" else None
        _, response = self.world.at_some_replica(lambda c: c.call("POST", path, json=body), fault)
        if response is not None:
            assert response.status_code in (200, 409), response.text

    @rule(name=sites, how=st.sampled_from(("leave", "release", "release", "revoke")), fault=faults)
    def somebody_goes(self, name: str, how: str, fault: Fault) -> None:
        client = self.world.clients[name]
        path = f"/v1/runs/{self.runs[0]}/clients/{client}/{how}"
        if how == "revoke":
            path = f"/v1/clients/{client}/revoke"
        body = None if how == "release" else {"why": "a reason"}
        _, response = self.world.at_some_replica(lambda c: c.call("POST", path, json=body), fault)
        if response is not None:
            assert response.status_code == 200, response.text

    # --- what always holds ---

    @invariant()
    def the_books_are_right(self) -> None:
        if self.runs:
            self.world.check_books(SITES, BUDGET)

    def _everybody_behaves(self) -> None:
        """Faults are over: every run ends, by itself, and nothing stays open."""
        for _ in range(60):
            shown = [self.world.call("GET", f"/v1/runs/{run}").json() for run in self.runs]
            if all(run["state"] not in ("running", "paused") for run in shown):
                break
            self.orders.clear()
            for name in SITES:
                self.asks_for_work(name, "none")
            for order in list(self.orders):
                self.world.executes(order)
                self._send(order)
            self.world.sweep()
            job_id = self.world.ready_job()
            job = self.world.claim_job(job_id) if job_id is not None else None
            if job is not None:
                self.world.complete_job(job)
            self.world.sweep()
            self.world.pass_time(13)
        else:
            raise AssertionError(f"a run hangs: {shown}")
        self.world.check_books(SITES, BUDGET)
        open_now = self.world.sql(
            "SELECT 1 FROM ledger_entries r WHERE kind = 'reserve' AND NOT EXISTS "
            "(SELECT FROM ledger_entries o WHERE o.reserve_id = r.id)"
        )
        assert open_now == []
        for run in shown:
            assert run["state"] == "completed" or run["why"], run
            event(f"a run ended {run['state']} with {run['rounds_published']} rounds")
        event(f"updates accepted: {len(self.world.accepted)}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_books_are_right_whatever_happens(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_rule, "calibrate", calibrate)

    class Here(Protocol):
        def make(self) -> World:
            empty(database_url)
            return World(settings)

    run_state_machine_as_test(
        Here,
        settings=hypothesis_settings(
            max_examples=8,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
