"""A site's word on a plan: by its policy, by a person, and what it binds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from core.errors import PlanRefused
from core.federation.plan import Noise, RunSpec
from core.privacy.accounting import epsilon
from core.training.compute import Compute
from tests.worker.support import (
    Script,
    make_config,
    make_order,
    make_plan,
    make_site_config,
    make_spec,
)
from worker import execution
from worker.agent import loop, plans
from worker.agent.consent import consider
from worker.agent.policy import judge, judge_plan
from worker.agent.price import cost
from worker.agent.records import AttemptKey, Decision
from worker.agent.site import Site
from worker.config import ClientConfig
from worker.execution import Outcome, perform


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(loop, "_LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def log() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def asking(config: ClientConfig) -> ClientConfig:
    return config.model_copy(update={"consent": "ask"})


def word(spec: RunSpec, decision: str = "approve", **changes: Any) -> Decision:
    values: dict[str, Any] = {
        "run_id": spec.run_id, "client": "site-a", "spec_digest": spec.digest, "joins": False,
        "decision": decision, "by": "person",
    }  # fmt: skip
    return Decision(**(values | changes))


def serve(script: Script, state_dir: Path, config: ClientConfig, until: Callable[[], bool]) -> None:
    """Run an agent in this thread until the condition holds (or a minute has passed)."""
    stopper, real = loop.Stopper(), script.before
    deadline = time.monotonic() + 60

    def before(request: httpx.Request) -> httpx.Response | None:
        if until() or time.monotonic() > deadline:
            stopper.event.set()
        return real(request)

    script.before = before
    loop.run_agent(
        script.client(),
        make_site_config(state_dir, config),
        compute=Compute(device="cpu"),
        poll_s=0.0,
        stopper=stopper,
    )


# --- the policy's word ---


def test_a_plan_within_the_limits_is_approved_at_once_and_done(
    state_dir: Path, config: ClientConfig
) -> None:
    script = Script(protocol=2, orders=[make_order()])
    script.ask()
    serve(script, state_dir, config, lambda: bool(script.accepted))
    ((said),) = script.said
    assert (said.decision, said.by, said.client, said.why) == ("approve", "policy", "site-a", "")
    assert said.spec_digest == make_spec().digest
    assert len(script.accepted) == 1
    assert sum(call.endswith("/consents") for call in script.calls) == 1


def test_a_plan_beyond_the_limits_is_refused_and_the_limits_stay_at_the_site(
    state_dir: Path, config: ClientConfig, log: list[Any]
) -> None:
    poor = config.model_copy(update={"max_epsilon": 0.123})
    script = Script(protocol=2, orders=[make_order()])
    script.ask()
    serve(script, state_dir, poor, lambda: bool(script.said))
    (said,) = script.said
    assert (said.decision, said.by) == ("refuse", "policy")
    assert said.why == "the site's policy forbids it: plan.privacy.epsilon"
    assert "0.123" in str([line for line in log if line["event"] == "plan_refused"])
    with Site.open(state_dir) as site:
        assert site.ledger.entries() == []


def test_a_word_that_was_not_heard_is_said_again(state_dir: Path, config: ClientConfig) -> None:
    script = Script(protocol=2, orders=[make_order()])
    script.ask()
    failures = iter([httpx.Response(503)] * 5)
    script.before = lambda r: next(failures, None) if r.url.path.endswith("/consents") else None
    serve(script, state_dir, config, lambda: bool(script.accepted))
    assert len(script.said) == len(script.accepted) == 1


def test_a_plan_that_is_not_what_it_says_is_not_answered(
    site: Site, config: ClientConfig, log: list[Any]
) -> None:
    other = make_spec(run_id="run-1", epsilon=7.0)
    script = Script(protocol=2)
    for changes in ({"spec_digest": other.digest}, {"run_id": "run-2"}):
        plan = make_plan(make_spec(), **changes)
        assert not consider(plan, config, site.ledger, script.client())
    assert script.said == []
    assert [line["event"] for line in log] == ["plan_refused"] * 2


@pytest.mark.parametrize(
    ("spec", "limits", "field"),
    [
        ({"purpose": "simulation"}, {}, "plan.purpose"),
        ({}, {"unit": "patient"}, "plan.privacy.unit"),
        ({}, {"delta": 1e-6}, "plan.privacy.delta"),
        ({}, {"space_digest": "sha256:" + "a" * 64}, "space"),
        ({}, {"max_sample_rate": 0.4}, "plan.privacy.sample_rate"),
        ({}, {"min_noise_multiplier": 2.5}, "noise.sketch_multiplier"),
        ({"noise": Noise(sketch_multiplier=3.0, train_multiplier=2.0)},
         {"min_noise_multiplier": 2.5}, "noise.train_multiplier"),
        ({"epsilon": 1.0}, {}, "plan.privacy.epsilon"),
        ({}, {"max_epsilon": 1.0}, "plan.privacy.epsilon"),
    ],
)  # fmt: skip
def test_a_plan_is_judged_by_the_same_limits_as_its_orders(
    config: ClientConfig, spec: dict[str, Any], limits: dict[str, Any], field: str
) -> None:
    made, limited = make_spec(**spec), config.model_copy(update=limits)
    with pytest.raises(PlanRefused) as plan:
        judge_plan(made, limited, [])
    with pytest.raises(PlanRefused) as order:
        judge(make_order(made), limited, [])
    assert plan.value.field == order.value.field == field


def test_what_a_plan_may_every_order_of_it_may(site: Site, config: ClientConfig) -> None:
    """And the other way round: a plan whose last round would pass the limit is refused whole."""
    spec = make_spec(sample_rate=1.0, epsilon=9.0)
    exact = config.model_copy(update={"max_epsilon": epsilon(spec.events(), 1e-5) * 1.0001})
    judge_plan(spec, exact, [])
    for number in range(spec.last_round + 1):
        order = make_order(spec, round_number=number)
        judge(order, exact, site.ledger.entries("a/all"))
        site.ledger.reserve(order, exact, lambda _: None)
        site.ledger.commit(AttemptKey.of(order), b"bytes")
    less = config.model_copy(update={"max_epsilon": epsilon(spec.events(), 1e-5) * 0.999})
    with pytest.raises(PlanRefused):
        judge_plan(spec, less, [])


def test_a_plan_is_judged_on_top_of_what_the_population_has_spent(
    site: Site, config: ClientConfig
) -> None:
    """Two clients, one population: what the first one spends is in what the second is shown.

    The wrong version, which looks at the plan alone, lets the second one pass the limit.
    """
    first, second = make_spec(run_id="run-1"), make_spec(run_id="run-2")
    twin = make_config(config.data, name="site-b")
    one, two = epsilon(first.events(), 1e-5), epsilon([*first.events(), *second.events()], 1e-5)
    between = {"max_epsilon": (one + two) / 2}
    config, twin = (c.model_copy(update=between) for c in (config, twin))
    judge_plan(second, twin, site.ledger.entries("a/all"))
    for number in range(first.last_round + 1):
        site.ledger.reserve(make_order(first, round_number=number), config, lambda _: None)
    entries = site.ledger.entries("a/all")
    price = cost(second, twin, entries)
    assert (price.plan, price.spent, price.after) == (one, one, two)
    with pytest.raises(PlanRefused, match="above"):
        judge_plan(second, twin, entries)
    judge_plan(second, twin, [])  # the wrong version: nothing was counted


def test_the_price_of_what_is_left(site: Site, config: ClientConfig) -> None:
    """A round that was executed is not counted twice; a lost attempt stays on top."""
    spec = make_spec()
    done, lost = make_order(spec, round_number=0), make_order(spec, round_number=1)
    site.ledger.reserve(done, config, lambda _: None)
    site.ledger.commit(AttemptKey.of(done), b"bytes")
    assert cost(spec, config, site.ledger.entries("a/all")).after == epsilon(spec.events(), 1e-5)
    site.ledger.reserve(lost, config, lambda _: None)
    site.ledger.lose(AttemptKey.of(lost))
    after = cost(spec, config, site.ledger.entries("a/all")).after
    assert after == epsilon([*spec.events(), lost.event], 1e-5)
    joins = cost(spec, config, [], joins=True)
    assert joins.plan == joins.after == epsilon([spec.event(spec.last_round + 1)], 1e-5)


# --- a person's word ---


def test_an_agent_that_asks_waits_for_a_person_and_then_works(
    state_dir: Path, asking: ClientConfig, log: list[Any]
) -> None:
    script = Script(protocol=2, orders=[make_order()])
    script.ask()
    polls: list[httpx.URL] = []

    def look(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("/work"):
            polls.append(request.url)
            time.sleep(0.02)
        return None

    script.before = look

    def approve() -> None:
        while len(polls) < 4:
            time.sleep(0.01)
        assert script.said == []
        with Site.open(state_dir) as site:
            site_config = make_site_config(state_dir, asking)
            assert site.ledger.is_unused()
            plans.decide(script.client(), site_config, site, "run-1", "approve")

    person = threading.Thread(target=approve)
    person.start()
    serve(script, state_dir, asking, lambda: bool(script.accepted))
    person.join()
    assert [(said.decision, said.by) for said in script.said] == [("approve", "person")]
    assert len(script.accepted) == 1
    told = [line for line in log if line["event"] == "plan_awaits_consent"]
    assert len(told) == 1  # not with every poll
    assert "agent approve run-1" in told[0]["mend"]
    assert polls[0].params.get_list("seen") == []
    assert polls[3].params.get_list("seen") == ["plan-run-1"]


def test_an_order_that_no_person_approved_is_refused_whatever_the_coordinator_says(
    site: Site, asking: ClientConfig
) -> None:
    """It hands out an order, hence claims that the site has consented."""
    order = make_order()
    script = Script(protocol=2, orders=[order])
    assert perform(order, asking, script.place(site)) is Outcome.PLAN_REFUSED
    assert script.failures == [(order.work_id, "plan-refused")]
    assert site.ledger.entries() == []


def test_defect_taking_the_coordinators_word_for_consent(
    site: Site, asking: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong version judges by the limits alone and executes what nobody here approved."""
    monkeypatch.setattr(
        execution, "judge", lambda o, c, entries, _word: judge(o, _as_policy(c), entries)
    )
    order = make_order()
    script = Script(protocol=2, orders=[order])
    assert perform(order, asking, script.place(site)) is Outcome.ACCEPTED
    assert [entry.kind for entry in site.ledger.entries()] == ["reserve", "commit"]


def _as_policy(config: ClientConfig) -> ClientConfig:
    return config.model_copy(update={"consent": "policy"})


@pytest.mark.parametrize(
    "said",
    [
        None,
        word(make_spec(epsilon=7.0)),  # another spec of the same run
        word(make_spec(), joins=True),
        word(make_spec(), "refuse"),
    ],
)
def test_an_approval_is_of_one_spec_and_of_what_it_was_about(
    asking: ClientConfig, said: Decision | None
) -> None:
    with pytest.raises(PlanRefused) as refused:
        judge(make_order(), asking, [], said)
    assert refused.value.field == "consent"
    assert "agent approve run-1" in (refused.value.mend or "")
    judge(make_order(), asking, [], word(make_spec()))


def test_a_person_cannot_approve_beyond_the_limits(asking: ClientConfig) -> None:
    poor = asking.model_copy(update={"max_epsilon": 1.0})
    with pytest.raises(PlanRefused, match="above 1"):
        judge(make_order(), poor, [], word(make_spec()))


def test_a_persons_no_holds_in_every_mode_and_the_last_word_counts(
    site: Site, config: ClientConfig
) -> None:
    spec = make_spec()
    for said, outcome in (
        ("refuse", Outcome.PLAN_REFUSED),
        ("approve", Outcome.ACCEPTED),
        ("refuse", Outcome.PLAN_REFUSED),
    ):
        site.ledger.decide(word(spec, said))
        number = 0 if outcome is Outcome.ACCEPTED else 1
        order = make_order(spec, round_number=number)
        script = Script(orders=[order])
        assert perform(order, config, script.place(site)) is outcome
    assert len(site.ledger.entries()) == 2


def test_the_policys_word_is_no_persons(site: Site, asking: ClientConfig) -> None:
    """The configuration may have said 'policy' before."""
    site.ledger.decide(word(make_spec(), by="policy"))
    order = make_order()
    assert perform(order, asking, Script(orders=[order]).place(site)) is Outcome.PLAN_REFUSED


def test_what_was_said_is_written_once_and_stays(site: Site) -> None:
    spec = make_spec()
    for _ in range(2):
        site.ledger.decide(word(spec))
    site.ledger.decide(word(spec, why="looked again"))
    count = site.ledger._db.execute("SELECT count(*) FROM consent").fetchone()
    assert count == (1,)
    for change in ("UPDATE consent SET decision = 'refuse'", "DELETE FROM consent"):
        with pytest.raises(Exception, match="append-only"):
            site.ledger._db.execute(change)
    site.ledger.decide(word(spec, "refuse"))
    said = site.ledger.word(spec.run_id, "site-a")
    assert said is not None
    assert said.decision == "refuse"
    assert site.ledger.word(spec.run_id, "site-b") is None


def test_a_word_given_while_the_coordinator_was_away_is_sent_later(
    site: Site, asking: ClientConfig
) -> None:
    script = Script(protocol=2)
    plan = script.ask()
    site.ledger.decide(word(plan.spec))
    assert consider(plan, asking, site.ledger, script.client())
    assert [(said.decision, said.by) for said in script.said] == [("approve", "person")]
