"""Joining a completed run from a site: the policy's word, the order, the command and its errors."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from click.testing import Result
from typer.testing import CliRunner

from core.errors import PlanRefused
from core.federation.plan import Noise, RunSpec, digest_of
from core.federation.updates import check_update, expectation
from core.privacy.accounting import epsilon
from core.wire.messages import WorkOrder
from tests.worker.support import (
    DIM,
    Killed,
    Script,
    make_config,
    make_order,
    make_site_config,
    make_spec,
    problem,
    space,
)
from worker.agent import join, loop
from worker.agent.join import join_run
from worker.agent.policy import judge, judge_plan
from worker.agent.records import AttemptKey
from worker.agent.restoration import Charge
from worker.agent.site import Site
from worker.cli import agent_app
from worker.config import ClientConfig
from worker.errors import ApiProblem, ConfigError, JoinFailed


def join_order(spec: RunSpec | None = None, *, attempt: int = 1, later: int = 1) -> WorkOrder:
    spec = spec or make_spec()
    made = make_order(spec, round_number=spec.last_round + later, attempt=attempt)
    return made.model_copy(update={"kind": "join"})


# --- the policy ---


def test_a_join_is_judged_by_what_it_costs(config: ClientConfig) -> None:
    """The budget fits one sketch and not the plan's whole run."""
    spec = make_spec()
    price = epsilon([join_order(spec).event], 1e-5)
    assert price < epsilon(spec.events(), 1e-5)
    just = config.model_copy(update={"max_epsilon": price * 1.001})
    judge(join_order(spec), just, [])
    with pytest.raises(PlanRefused, match="above"):
        judge(make_order(spec), just, [])
    with pytest.raises(PlanRefused, match="above") as refused:
        judge(join_order(spec), config.model_copy(update={"max_epsilon": price * 0.99}), [])
    assert refused.value.field == "plan.privacy.epsilon"


def test_a_join_of_a_run_of_two_sketch_steps_costs_both(config: ClientConfig) -> None:
    """The order books the noise whose price is that of both steps, and the price of round 0 is
    not enough for it."""
    noise = Noise(sketch_multiplier=3.0, spread_multiplier=3.0, train_multiplier=2.0)
    spec = make_spec(noise=noise, sketch_steps=2, mean_share=0.5, refine_share=0.5)
    order = join_order(spec)
    assert order.event.noise_multiplier == pytest.approx(3.0 / 2.0**0.5)
    price, first = epsilon([order.event], 1e-5), epsilon([spec.event(0)], 1e-5)
    judge(order, config.model_copy(update={"max_epsilon": price * 1.001}), [])
    with pytest.raises(PlanRefused, match="above"):
        judge(order, config.model_copy(update={"max_epsilon": (price + first) / 2}), [])
    with pytest.raises(PlanRefused) as refused:
        judge(order.model_copy(update={"event": spec.event(0)}), config, [])
    assert refused.value.field == "event"


def test_a_join_asks_nothing_of_the_rounds_that_it_missed(config: ClientConfig) -> None:
    spec = make_spec(noise=Noise(sketch_multiplier=2.0, train_multiplier=1.9), epsilon=10.0)
    strict = config.model_copy(update={"max_sample_rate": 0.1, "min_noise_multiplier": 1.95})
    judge(join_order(spec), strict, [])
    with pytest.raises(PlanRefused):
        judge(make_order(spec), strict, [])
    stricter = config.model_copy(update={"min_noise_multiplier": 2.1})
    with pytest.raises(PlanRefused, match="noise multiplier 2 is below"):
        judge(join_order(spec), stricter, [])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": "train"}, "kind"),
        ({"round_number": 20_000}, "round_number"),
        ({"event": make_spec().event(2)}, "event"),
        ({"client": "site-z"}, "client"),
    ],
)
def test_a_join_that_is_not_what_it_says(
    config: ClientConfig, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(PlanRefused) as refused:
        judge(join_order().model_copy(update=change), config, [])
    assert refused.value.field == field


def test_every_join_is_charged(config: ClientConfig, site: Site) -> None:
    """A coordinator that loses one attempt after the other comes to the end of its budget."""
    spec = make_spec()
    limit = epsilon([join_order(spec).event] * 2, 1e-5) * 1.001
    limited = config.model_copy(update={"max_epsilon": limit})
    for attempt in (1, 2, 3):
        order = join_order(spec, attempt=attempt)
        entries = site.ledger.entries(config.population)
        if attempt == 3:
            with pytest.raises(PlanRefused, match="2 events charged before"):
                judge(order, limited, entries)
        else:
            judge(order, limited, entries)
            site.ledger.reserve(order, limited, lambda _: None)
            site.ledger.lose(AttemptKey.of(order))


def test_a_run_is_joined_once(
    config: ClientConfig, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second round's sketch is a second release; the known wrong version makes as many as the
    budget holds. An attempt that was lost was never sent, so another round may follow it."""
    first, again, second = join_order(), join_order(attempt=2), join_order(later=2)
    entries = lambda: site.ledger.entries(config.population)  # noqa: E731
    site.ledger.reserve(first, config, lambda _: None)
    with pytest.raises(PlanRefused, match="joined this run already, by its sketch of round 3"):
        judge(second, config, entries())  # the first may be under way
    site.ledger.lose(AttemptKey.of(first))
    judge(again, config, entries())
    judge(second, config, entries())
    site.ledger.reserve(again, config, lambda _: None)
    site.ledger.commit(AttemptKey.of(again), b"a sketch")
    judge(join_order(attempt=3), config, entries())  # of the same round, and charged
    judge(join_order(make_spec(run_id="another"), later=2), config, entries())
    with pytest.raises(PlanRefused) as refused:
        judge(second, config, entries())
    assert refused.value.field == "round_number"
    with pytest.raises(PlanRefused, match="joined this run already"):
        judge_plan(second.spec, config, entries(), joins=True, join_round=4)
    judge_plan(second.spec, config, entries(), joins=True, join_round=3)
    with monkeypatch.context() as patch:
        patch.setattr("worker.agent.join_policy.once", lambda *_: None)
        judge(second, config, entries())


def test_what_a_restored_ledger_has_as_lost_may_have_been_sent(
    config: ClientConfig, site: Site
) -> None:
    order = join_order()
    site.ledger.mark_restored("2026-03-01T00:00:00Z")
    charge = Charge(AttemptKey.of(order), order.event, order.spec_digest)
    site.ledger.complete(config.population, config.unit, [charge])
    entries = site.ledger.entries(config.population)
    assert [(entry.kind, entry.restored) for entry in entries] == [
        ("reserve", True),
        ("lost", True),
    ]
    with pytest.raises(PlanRefused, match="joined this run already"):
        judge(join_order(later=2), config, entries)


# --- a running agent ---


def test_a_running_agent_joins_by_itself(
    state_dir: Path, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_FIRST_PAUSE_S", 0.01)
    order = join_order()
    script, stopper = Script(orders=[order]), loop.Stopper()
    script.after_put = stopper.event.set
    loop.run_agent(
        script.client(), make_site_config(state_dir, config), poll_s=0.0, stopper=stopper
    )
    ((path, digest),) = script.accepted.items()
    assert f"/rounds/{order.round_number}/" in path
    check_update(script.bodies[digest], expectation(order.spec, order.round_number))
    assert not any("/objects/" in call for call in script.calls)  # a sketch reads only records
    with Site.open(state_dir) as site:
        assert [row.kind for row in site.ledger.entries()] == ["reserve", "commit"]
        assert site.ledger.epsilon("a/all", 1e-5) == epsilon([order.event], 1e-5)


# --- the command, with a scripted coordinator of one completed run ---


class Completed(Script):
    """A run of round 0 to 2; joins are rounds 3, 4, ..."""

    def __init__(self, spec: RunSpec | None = None, *, plan: str = "open") -> None:
        super().__init__(before=self.answer)
        self.spec = spec or make_spec()
        self.plan = plan
        self.joins: list[dict[str, Any]] = []
        self.refuse: httpx.Response | None = None
        self.publishes = True
        self.asked = 0

    def invite(self, state: str = "open", why: str = "") -> None:
        number = self.spec.last_round + 1 + len(self.joins)
        self.joins.append(
            {
                "run_id": self.spec.run_id, "round": number, "state": state, "why": why,
                "clients": ["site-a"], "members": [{"client": "site-a", "why": ""}],
            }
        )  # fmt: skip
        if state == "open":
            self.orders.append(join_order(self.spec, later=len(self.joins)))

    def answer(self, request: httpx.Request) -> httpx.Response | None:
        path = f"/v1/runs/{self.spec.run_id}"
        if request.url.path == f"{path}/joins" and request.method == "POST":
            self.asked += 1
            if self.refuse is not None:
                return self.refuse
            if self.plan == "invited":
                return problem(403, "forbidden", mend=f"Ask an administrator: POST {path}/joins.")
            self.invite()
            return httpx.Response(201, json=self.joins[-1])
        if request.url.path == f"{path}/joins":
            if not self.joins:
                return problem(404, "not-found")
            if self.publishes and self.accepted and self.joins[-1]["state"] == "open":
                self.joins[-1]["state"] = "published"
            after = int(request.url.params.get("after", 0))
            items = [item for item in self.joins if item["round"] > after]
            return httpx.Response(200, json={"items": items, "next": None})
        if request.url.path == f"{path}/model":
            return httpx.Response(200, json={"clients": ["site-0", "site-a"]})
        if request.url.path == path:
            return httpx.Response(200, json={"name": "trial"})
        return None


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(join, "_PAUSE_S", 0.02)
    monkeypatch.setattr(join, "_POLL_S", 0.0)
    yield
    structlog.reset_defaults()


class Asking(Completed):
    """The same at a coordinator that asks sites: a join awaits its site's word."""

    def __init__(self, spec: RunSpec | None = None, *, plan: str = "open") -> None:
        super().__init__(spec, plan=plan)
        self.protocol = 2

    def invite(self, state: str = "open", why: str = "") -> None:
        super().invite(state, why)
        self.ask(self.spec, joins=True, rounds=1)

    def answer(self, request: httpx.Request) -> httpx.Response | None:
        if request.url.path == f"/v1/runs/{self.spec.run_id}":
            spec = self.spec.model_dump(mode="json")
            return httpx.Response(200, json={"name": "trial", "spec": spec})
        return super().answer(request)


Command = Callable[..., Result]


@pytest.fixture
def command(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    def run(script: Script, *arguments: str, client: str = "site-a", extra: str = "") -> Result:
        (tmp_path / "site.toml").write_text(
            '[site]\nstate_dir = "state"\n[[client]]\nname = "site-a"\n'
            f'data = "{records.name}"\nunit = "record"\npopulation = "a/all"\n'
            f"max_epsilon = 8.0\ndelta = 1e-5\nmin_noise_multiplier = 0.3\n{extra}"
        )
        monkeypatch.setenv("FHV_SITE_CONFIG", str(tmp_path / "site.toml"))
        monkeypatch.setenv("FHV_TOKEN", "fhv_client_secret")
        monkeypatch.setattr("worker.client.CoordinatorClient", lambda *_, **__: script.client())
        return CliRunner().invoke(agent_app, ["join", "run-1", "--client", client, *arguments])

    return run


def kinds(state_dir: Path) -> list[str]:
    if not state_dir.exists():
        return []
    with Site.open(state_dir) as site:
        return [row.kind for row in site.ledger.entries()]


@pytest.mark.parametrize(("consent", "by"), [("policy", "policy"), ("ask", "person")])
def test_the_command_is_the_sites_word_and_shows_the_price_first(
    command: Command, state_dir: Path, consent: str, by: str
) -> None:
    script = Asking()
    result = command(script, extra=f'consent = "{consent}"\n')
    assert result.exit_code == 0, result.output
    assert [(each.decision, each.by) for each in script.said] == [("approve", by)]
    price = epsilon([script.spec.event(3)], 1e-5)
    said = f"the join costs epsilon {price:.4g}; the account goes from 0 to {price:.4g} of 8"
    assert said in result.stdout
    assert kinds(state_dir) == ["reserve", "commit"]
    with Site.open(state_dir) as site:
        word = site.ledger.word("run-1", "site-a")
    assert (word is not None and word.joins) == (by == "person")


def test_a_join_beyond_the_limits_is_not_refused_for_good(
    command: Command, state_dir: Path
) -> None:
    """A refusal would be final, and the limit may be what is wrong."""
    noise = Noise(sketch_multiplier=0.31, train_multiplier=2.0)
    script = Asking(make_spec(noise=noise, epsilon=50.0))
    refused = command(script)
    assert refused.exit_code == 1
    assert "this site's policy refuses the join" in refused.stderr
    assert "Nothing was spent" in refused.stderr
    assert script.said == []
    assert kinds(state_dir) == []
    assert [join["state"] for join in script.joins] == ["open"]


@pytest.mark.parametrize("plan", ["open", "invited"])
def test_the_command_joins_and_says_where_the_client_stands(
    command: Command, state_dir: Path, plan: str
) -> None:
    script = Completed(plan=plan)
    if plan == "invited":
        script.invite()
    result = command(script)
    assert result.exit_code == 0, result.output
    assert script.asked == (plan == "open")
    assert len(script.accepted) == 1
    assert kinds(state_dir) == ["reserve", "commit"]
    price = epsilon([script.spec.event(3)], 1e-5)
    assert "joined run trial (run-1); its code is known since round 3" in result.stdout
    assert f"epsilon {price:.4g} on this run, {price:.4g} of 8 in all" in result.stdout
    bodies = [line.split("-d '")[1].rstrip("'") for line in result.stdout.splitlines()[-2:]]
    assert [json.loads(body)["mixture"] for body in bodies] == [
        {"site-a": 1.0},
        {"site-a": 0.5, "site-0": 0.5},
    ]
    again = command(script)
    assert (again.exit_code, script.asked, len(script.puts)) == (0, plan == "open", 1)
    assert kinds(state_dir) == ["reserve", "commit"]


def test_after_a_failed_join_the_command_asks_again(command: Command, state_dir: Path) -> None:
    script = Completed()
    script.invite("failed", "the deadline has passed")
    result = command(script)
    assert result.exit_code == 0, result.output
    assert "round 4" in result.stdout
    assert script.asked == 1


def failure(result: Result, *says: str) -> None:
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    for words in says:
        assert words in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (None, ("403 forbidden", "Ask an administrator: POST /v1/runs/run-1/joins.")),
        (problem(409, "conflict", mend="Wait until the run is completed."), ("Wait until",)),
        (problem(409, "budget-exceeded", mend="Use another population."), ("409 budget-exceeded",)),
        (problem(422, "space-mismatch", mend="Enrol a client."), ("422 space-mismatch", "Enrol")),
        (problem(404, "not-found"), ("404 not-found",)),
    ],
)
def test_what_the_coordinator_refuses_is_said_with_its_mend(
    command: Command, state_dir: Path, refusal: httpx.Response | None, says: tuple[str, ...]
) -> None:
    script = Completed(plan="invited")
    script.refuse = refusal
    failure(command(script), *says)
    assert kinds(state_dir) == []


@pytest.mark.parametrize("state", ["failed", "abandoned"])
def test_a_join_that_ends_without_a_model(command: Command, state: str) -> None:
    script = Completed()
    script.publishes = False
    real = script.after_put
    script.after_put = lambda: (real(), script.joins[-1].update(state=state, why="no more disk"))
    verb = {"failed": "has failed", "abandoned": "was abandoned"}[state]
    failure(command(script), f"the join {verb}: no more disk", "same command again")


def test_a_join_that_is_not_published_in_time_goes_on_with_the_same_command(
    command: Command, state_dir: Path
) -> None:
    script = Completed()
    script.publishes = False
    failure(command(script, "--timeout", "1"), "not published within", "round 3 is open", "nothing")
    script.publishes = True
    assert command(script).exit_code == 0
    assert (script.asked, len(script.puts)) == (1, 1)
    assert kinds(state_dir) == ["reserve", "commit"]


def test_the_sites_own_budget_refuses(command: Command, state_dir: Path) -> None:
    script = Completed(make_spec(noise=Noise(sketch_multiplier=0.5, train_multiplier=9.0),
                                 epsilon=50.0))  # fmt: skip
    result = command(script)
    failure(
        result, "policy refuses the join", "above 8 (plan.privacy.epsilon)", "Nothing was spent"
    )
    assert script.failures == [(join_order(script.spec).work_id, "plan-refused")]
    assert kinds(state_dir) == []


def test_records_that_cannot_be_used_are_found_before_anything_is_asked(
    command: Command, records: Path, state_dir: Path
) -> None:
    script = Completed()
    np.savez(records, x=np.ones((2, DIM + 1), np.float32), y=np.zeros(2, np.int64))
    failure(command(script), f"{DIM + 1} wide", "Nothing was asked for or spent", "agent check")
    records.unlink()
    failure(command(script), "no data file")
    assert (script.asked, kinds(state_dir)) == (0, [])


def test_a_space_that_is_not_the_pinned_one(command: Command, state_dir: Path) -> None:
    script = Completed()
    failure(command(script, extra=f'space_digest = "sha256:{"a" * 64}"'), "not the pinned one")
    assert script.asked == 0
    assert command(script, extra=f'space_digest = "{digest_of(space())}"').exit_code == 0


def test_the_wrong_client_or_token(command: Command) -> None:
    script = Completed()
    failure(command(script, client="site-z"), "it has: site-a")
    other = '[[client]]\nname = "site-b"\ndata = "b.npz"\nunit = "record"\npopulation = "b"\n'
    other += "max_epsilon = 8.0\ndelta = 1e-5\nmin_noise_multiplier = 0.3\n"
    result = command(script, client="site-b", extra=other)
    failure(result, "the token is that of client 'site-a'", "FHV_TOKEN")
    assert script.asked == 0


def test_an_order_that_is_not_the_join_is_given_back(state_dir: Path, config: ClientConfig) -> None:
    script = Completed(plan="invited")
    script.invite()
    script.orders[0] = make_order(script.spec, round_number=1)
    with pytest.raises(JoinFailed, match="a train order of round 1 instead"):
        join_run(script.client(), make_site_config(state_dir, config), "run-1", "site-a")
    assert [code for _, code in script.failures] == ["plan-refused"]
    assert kinds(state_dir) == []


def test_an_attempt_that_ends_without_an_update_stays_charged(
    state_dir: Path, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr("core.training.local.execute", broken)
    with pytest.raises(JoinFailed, match="stays charged"):
        join_run(Completed().client(), make_site_config(state_dir, config), "run-1", "site-a")
    assert kinds(state_dir) == ["reserve", "lost"]


def test_a_refused_update(state_dir: Path, config: ClientConfig) -> None:
    script = Completed()
    real = script.answer

    def late(request: httpx.Request) -> httpx.Response | None:
        return problem(409, "round-closed") if request.method == "PUT" else real(request)

    script.before = late
    with pytest.raises(JoinFailed, match="refused the update"):
        join_run(script.client(), make_site_config(state_dir, config), "run-1", "site-a")
    assert kinds(state_dir) == ["reserve", "commit"]


def test_a_refused_token_ends_it(state_dir: Path, config: ClientConfig) -> None:
    script = Completed()
    script.before = lambda _: problem(401, "unauthenticated")
    with pytest.raises(ApiProblem, match="unauthenticated"):
        join_run(script.client(), make_site_config(state_dir, config), "run-1", "site-a")


def test_enrolment_and_configuration_must_agree(state_dir: Path, config: ClientConfig) -> None:
    script = Completed()
    script.me = {**script.me, "unit": "patient"}
    with pytest.raises(ConfigError, match="unit"):
        join_run(script.client(), make_site_config(state_dir, config), "run-1", "site-a")


def test_a_coordinator_that_goes_away_meanwhile_is_waited_for(
    state_dir: Path, config: ClientConfig
) -> None:
    script = Completed()
    real, left = script.answer, iter(range(12))

    def away(request: httpx.Request) -> httpx.Response | None:
        if script.joins and next(left, None) is not None:
            raise httpx.ConnectError("refused")
        return real(request)

    script.before = away
    said: list[str] = []
    site = make_site_config(state_dir, config)
    made = join_run(script.client(), site, "run-1", "site-a", say=said.append)
    assert made.round_number == 3
    assert any("coordinator is away" in line for line in said)

    gone = Completed()
    gone.before = lambda r: real_or_away(gone, r)
    with pytest.raises(JoinFailed, match="the coordinator is away"):
        join_run(gone.client(), site, "run-1", "site-a", timeout_s=0.3)


def real_or_away(script: Completed, request: httpx.Request) -> httpx.Response | None:
    if script.joins:
        raise httpx.ConnectError("refused")
    return script.answer(request)


def test_killed_between_commit_and_answer_the_same_bytes_are_sent(
    state_dir: Path, config: ClientConfig
) -> None:
    script = Completed()
    site_config = make_site_config(state_dir, config)

    def kill(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT":
            script.puts.append((request.url.path, digest_of_body(request), ""))
            raise Killed
        return script.answer(request)

    script.before = kill
    with pytest.raises(Killed):
        join_run(script.client(), site_config, "run-1", "site-a")
    script.before = script.answer
    join_run(script.client(), site_config, "run-1", "site-a")
    assert len({digest for _, digest, _ in script.puts}) == 1
    assert kinds(state_dir) == ["reserve", "commit"]
    assert script.asked == 1


def digest_of_body(request: httpx.Request) -> str:
    return "sha256:" + hashlib.sha256(request.read()).hexdigest()


def test_beside_a_running_agent_the_command_only_asks_and_waits(
    state_dir: Path, config: ClientConfig
) -> None:
    script = Completed()
    said: list[str] = []
    site_config = make_site_config(state_dir, config)

    def agent() -> None:
        with Site.open(state_dir) as site, site.lock("site-a"):
            held.set()
            while not script.joins:
                time.sleep(0.01)
            order = script.orders[0]
            site.ledger.reserve(order, config, lambda _: None)
            site.ledger.commit(AttemptKey.of(order), b"by the agent")
            script.accepted["by the agent"] = "x"
            asked.wait(5)

    held, asked = threading.Event(), threading.Event()
    thread = threading.Thread(target=agent)
    thread.start()
    held.wait(5)
    try:
        made = join_run(script.client(), site_config, "run-1", "site-a", say=said.append)
    finally:
        asked.set()
        thread.join()
    assert made.clients == ("site-0", "site-a")
    assert any("an agent of this site is running" in line for line in said)
    assert not any(call.endswith("/work") for call in script.calls)


def test_another_client_of_the_site_is_left_alone(state_dir: Path, config: ClientConfig) -> None:
    other = make_config(config.data, name="site-b", population="b/all")
    with Site.open(state_dir) as site:
        site.ledger.reserve(make_order(client="site-b"), other, lambda _: None)
    script = Completed()
    join_run(script.client(), make_site_config(state_dir, config, other), "run-1", "site-a")
    with Site.open(state_dir) as site:
        assert len(site.ledger.unfinished("site-b")) == 1
