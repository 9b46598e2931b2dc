"""Secure sums as a hypothesis state machine: any operation, in any order, with any fault.

Sites answer, answer again, decline, fall silent; replicas die before or after any commit; people
pause, resume, and take clients out; time jumps. Whatever happens: an answer is kept as it was
given, honest sites are never told two stories, what is summed is exactly what was contributed, and
in the end every run has ended. ``test_protocol_machine`` is the same for plain rounds.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, event
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from api.config import Settings
from core.federation import rule as plan_rule
from core.secagg.collector import Collector
from core.secagg.messages import Transcript
from core.wire.messages import AggregateJob, WorkOrder
from core.wire.secure import SumStep
from tests.api.sums import SITES, Site, a_secure_run
from tests.api.support import Coordinator, calibrate
from tests.api.world import Fault, World
from tests.conftest import empty

BUDGET = 16.0
faults = st.sampled_from(("none", "none", "none", "before-commit", "after-commit"))
sites = st.sampled_from(SITES)


class SecureProtocol(RuleBasedStateMachine):
    make: Any = None  # set by the test: a fresh world

    def __init__(self) -> None:
        super().__init__()
        self.world: World = self.make()
        self.sites: dict[str, Site] = {}
        self.run = ""
        self.steps: list[tuple[str, SumStep]] = []
        self.vectors: dict[tuple[str, int], bytes] = {}
        self.answers: dict[str, Any] = {}

    def teardown(self) -> None:
        try:
            if self.run:
                self._everybody_behaves()
        finally:
            self.world.close()

    @initialize()
    def a_run(self) -> None:
        coordinator = self.world.replicas[0].coordinator
        made = self.world.run(
            a_secure_run(coordinator, epsilon=BUDGET, privacy={"rounds": 0, "epsilon": 2.0})
        )
        self.sites, self.run = dict(made.all), made.run["id"]

    # --- sites ---

    @rule(name=sites, fault=faults, commits=st.integers(0, 1))
    def a_site_acts(self, name: str, fault: Fault, commits: int) -> None:
        """It polls, and does what it is asked; whoever did not see the answer does it again."""
        self._at(name, self._acts, fault, commits)

    @rule(names=st.lists(sites, min_size=3, max_size=4, unique=True))
    def sites_act(self, names: list[str]) -> None:
        """As most of them do most of the time."""
        for name in names:
            self._at(name, self._acts)
        self.world.sweep()

    def _at(self, name: str, work: Any, fault: Fault = "none", commits: int = 0) -> None:
        site = self.sites[name]

        async def there(coordinator: Coordinator) -> None:
            site.coordinator = coordinator
            await work(site)

        self.world.at_some_replica(there, fault, commits)

    async def _acts(self, site: Site) -> None:
        path = f"/v1/clients/{site.coordinator.clients[site.name]}/work"
        found = await site.coordinator.call(
            "GET", path, site.name, headers={"X-FHV-Protocol-Range": "1-3"}
        )
        assert found.status_code in (200, 204, 401), found.text
        if found.status_code != 200:
            return
        body = found.json()
        if body["type"] == "order":
            await self._sends(site, WorkOrder.model_validate(body["order"]))
            return
        step = SumStep.model_validate(body["step"])
        self.steps.append((site.name, step))
        await self._answers(site, step)

    async def _sends(self, site: Site, order: WorkOrder) -> None:
        """One vector a round, whatever the attempt: a second one would show the difference."""
        key = (site.name, order.round_number)
        if key not in self.vectors:
            self.world.executes(order.model_dump(mode="json"))
            self.vectors[key] = site.masked(order)
        sent = await site.send(order, self.vectors[key])
        assert sent.status_code in (200, 201, 401, 409), sent.text

    async def _answers(self, site: Site, step: SumStep) -> None:
        answer = site.answer_of(step)  # raises where the coordinator tells two stories
        sent = await site.put(step, answer)
        assert sent.status_code in (200, 201, 401, 409), sent.text
        if sent.is_success:
            written = answer.model_dump(mode="json", exclude_none=True)
            assert self.answers.setdefault(step.step_id, written) == written

    @rule(back=st.integers(0, 7), fault=faults)
    def a_step_is_answered_again(self, back: int, fault: Fault) -> None:
        """An answer that was on its way for long; its site may have gone on, or be out."""
        if not self.steps:
            return
        name, step = self.steps[-1 - min(back, len(self.steps) - 1)]

        async def again(site: Site) -> None:
            await self._answers(site, step)

        self._at(name, again, fault)

    @rule(name=sites, code=st.sampled_from(("site-not-ready", "plan-refused")), fault=faults)
    def a_site_declines(self, name: str, code: str, fault: Fault) -> None:
        mine = [step for who, step in self.steps if who == name]
        if not mine or len(self.steps) % 3:  # seldom: two of them end the run
            return

        async def declines(site: Site) -> None:
            sent = await site.decline(mine[-1], code)
            assert sent.status_code in (204, 401, 409), sent.text

        self._at(name, declines, fault)

    # --- the coordinator, its worker, people ---

    @rule(fault=faults, commits=st.integers(0, 3))
    def sweeps(self, fault: Fault, commits: int) -> None:
        self.world.sweep(fault, commits)

    @rule(fault=faults)
    def the_worker_sums(self, fault: Fault) -> None:
        job_id = self.world.ready_job()
        job = self.world.claim_job(job_id) if job_id is not None else None
        if job is not None:
            self._is_exact(job)
            self.world.complete_job(job, fault)

    def _is_exact(self, job: AggregateJob) -> None:
        assert job.transcript is not None
        read = self.world.replicas[0].coordinator.ctx.store.get
        transcript = Transcript.model_validate_json(read(job.transcript))
        masked = {update.client: read(update.digest) for update in job.updates}
        assert len(masked) >= transcript.session.survivors
        parts = [self.sites[name].contributed[job.round_number] for name in masked]
        assert (Collector.of(transcript, masked).total() == sum(parts)).all()
        event(f"a sum of {len(masked)}")

    @rule(seconds=st.sampled_from((1.0, 6.0, 11.0, 31.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(action=st.sampled_from(("pause", "resume", "resume")), fault=faults)
    def an_operator_acts(self, action: str, fault: Fault) -> None:
        body = {"seconds": 90.0} if action == "pause" else None
        path = f"/v1/runs/{self.run}/{action}"
        _, response = self.world.at_some_replica(lambda c: c.call("POST", path, json=body), fault)
        if response is not None:
            assert response.status_code in (200, 409), response.text

    @rule(how=st.sampled_from(("leave", "revoke")), fault=faults)
    def one_goes(self, how: str, fault: Fault) -> None:
        """Always the same one: the others are as many as the sum needs."""
        client = self.world.clients["site-d"]
        path = f"/v1/runs/{self.run}/clients/{client}/leave"
        if how == "revoke":
            path = f"/v1/clients/{client}/revoke"
        body = {"why": "a reason"}
        _, response = self.world.at_some_replica(lambda c: c.call("POST", path, json=body), fault)
        if response is not None:
            assert response.status_code == 200, response.text

    # --- what always holds ---

    @invariant()
    def the_books_are_right(self) -> None:
        if not self.run:
            return
        self.world.check_books(SITES, BUDGET)
        kept = {
            str(row[0]): row[1]
            for row in self.world.sql("SELECT id, body FROM sum_steps WHERE state = 'answered'")
        }
        for step_id, written in self.answers.items():
            assert kept[step_id] == written, "an accepted answer is lost or replaced"
        # Nobody is asked for shares that open less than was promised, nor before a list is signed.
        assert not self.world.sql(
            "SELECT 1 FROM secure_sums s WHERE EXISTS (SELECT FROM sum_steps t WHERE "
            "(t.run_id, t.round_number) = (s.run_id, s.round_number) AND t.step = 'open') AND ("
            "jsonb_array_length(s.session->'sites') - (s.session->>'drop')::int > (SELECT count(*) "
            "FROM updates u WHERE (u.run_id, u.round_number) = (s.run_id, s.round_number)) OR "
            "(SELECT count(*) FROM sum_steps t WHERE (t.run_id, t.round_number) = "
            "(s.run_id, s.round_number) AND t.step = 'confirm' AND t.state = 'answered') < 3)"
        )

    def _everybody_behaves(self) -> None:
        for _ in range(60):
            shown = self.world.call("GET", f"/v1/runs/{self.run}").json()
            if shown["state"] not in ("running", "paused"):
                break
            for name in SITES:
                self._at(name, self._acts)
            self.world.sweep()
            self.the_worker_sums("none")
            self.world.sweep()
            self.world.pass_time(13)
        else:
            raise AssertionError(f"the run hangs: {shown}")
        self.the_books_are_right()
        assert shown["state"] == "completed" or shown["why"], shown
        event(f"the run ended {shown['state']}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sums_are_exact_and_answers_are_kept_whatever_happens(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_rule, "calibrate", calibrate)

    class Here(SecureProtocol):
        def make(self) -> World:
            empty(database_url)
            return World(settings)

    run_state_machine_as_test(
        Here,
        settings=hypothesis_settings(
            max_examples=4,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
