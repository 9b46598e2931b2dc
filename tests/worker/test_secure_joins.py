"""Joining a completed run of secure sums: one sketch in the clear, if this site wants it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from core.errors import PlanRefused
from core.federation.plan import RunSpec
from core.wire.messages import WorkOrder
from tests.worker.sum_world import secure_spec
from tests.worker.support import Script, make_order, make_site_config, problem
from worker import tasks
from worker.agent import join, join_policy
from worker.agent.consent import consider
from worker.agent.join import join_run
from worker.agent.policy import judge
from worker.agent.records import AttemptKey, Decision
from worker.agent.site import Site
from worker.config import ClientConfig, WorkerSettings
from worker.errors import JoinFailed
from worker.execution import Outcome, perform

FOUNDED = secure_spec()
LATE = secure_spec(names=("site-0", "site-1", "site-2", "site-3"))  # site-a is not among them


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(join, "_PAUSE_S", 0.02)
    monkeypatch.setattr(join, "_POLL_S", 0.0)
    yield
    structlog.reset_defaults()


def join_order(spec: RunSpec, later: int = 1, attempt: int = 1) -> WorkOrder:
    made = make_order(spec, round_number=spec.last_round + later, attempt=attempt)
    return made.model_copy(update={"kind": "join"})


def said(spec: RunSpec, *, joins: bool, by: str = "person", decision: str = "approve") -> Decision:
    return Decision(spec.run_id, "site-a", spec.digest, joins, decision, by)  # type: ignore[arg-type]


@pytest.fixture(params=["ask", "policy"])
def config(request: pytest.FixtureRequest, records: Path) -> ClientConfig:
    from tests.worker.support import make_config

    return make_config(records, consent=request.param, peers=records.with_name("peers.json"))


def word_of(site: Site, config: ClientConfig) -> Decision | None:
    return site.ledger.word("run-1", "site-a", consent=config.consent)


# --- the policy ---


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ([], False),
        ([said(FOUNDED, joins=False)], False),
        ([said(FOUNDED, joins=False), said(FOUNDED, joins=True)], True),
        ([said(FOUNDED, joins=True), said(FOUNDED, joins=True, decision="refuse")], False),
        ([said(LATE, joins=True)], False),  # another spec
    ],
)
def test_a_sketch_in_the_clear_needs_a_word_of_its_own(
    config: ClientConfig, site: Site, words: list[Decision], allowed: bool
) -> None:
    for word in words:
        site.ledger.decide(word)
    if allowed:
        judge(join_order(FOUNDED), config, [], word_of(site, config))
        return
    with pytest.raises(PlanRefused) as refused:
        judge(join_order(FOUNDED), config, [], word_of(site, config))
    assert refused.value.field == "consent"
    assert "agent approve run-1" in (refused.value.mend or "")


def test_whose_word_counts(config: ClientConfig, site: Site) -> None:
    """Where a person is asked, the policy's word is none; nowhere does it undo a person's no."""
    asks = config.consent == "ask"
    for word, allowed in (
        (said(FOUNDED, joins=False), False),
        (said(FOUNDED, joins=True, by="policy"), not asks),
        (said(FOUNDED, joins=True, by="policy", decision="refuse"), False),
        (said(FOUNDED, joins=True, by="policy"), not asks),
        (said(FOUNDED, joins=True, decision="refuse"), False),
        (said(FOUNDED, joins=False, by="policy"), False),
        (said(FOUNDED, joins=True, by="policy"), False),
        (said(FOUNDED, joins=True), True),
    ):
        site.ledger.decide(word)
        order = join_order(FOUNDED)
        if allowed:
            judge(order, config, [], word_of(site, config))
        else:
            with pytest.raises(PlanRefused, match=r"clear|refused"):
                judge(order, config, [], word_of(site, config))


def test_defect_a_word_on_the_secure_plan_is_taken_for_one_on_a_join(
    config: ClientConfig, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The known wrong version: the coordinator asks for the site's own sketch, again and again."""
    site.ledger.decide(said(FOUNDED, joins=False))
    first, second = join_order(FOUNDED), join_order(FOUNDED, later=2)
    script = Script(orders=[first, second])
    place = script.place(site)
    assert perform(first, config, place) is Outcome.PLAN_REFUSED
    assert script.failures == [(first.work_id, "plan-refused")]
    assert site.ledger.entries() == []
    monkeypatch.setattr(join_policy, "wanted", lambda *_: None)
    monkeypatch.setattr(join_policy, "once", lambda *_: None)
    script.orders = [first, second]
    assert [perform(order, config, place) for order in (first, second)] == [Outcome.ACCEPTED] * 2
    assert len(set(script.bodies)) == 2, "two draws of noise on one statistic"


def test_attempts_of_one_join_go_on_and_another_join_does_not(
    config: ClientConfig, site: Site
) -> None:
    site.ledger.decide(said(FOUNDED, joins=True))
    lost = join_order(FOUNDED)
    site.ledger.reserve(lost, config, lambda _: None)
    site.ledger.lose(AttemptKey.of(lost))
    again, second = join_order(FOUNDED, attempt=2), join_order(FOUNDED, later=2)
    script = Script(orders=[again, second])
    assert perform(again, config, script.place(site)) is Outcome.ACCEPTED
    assert perform(second, config, script.place(site)) is Outcome.PLAN_REFUSED
    assert [entry.kind for entry in site.ledger.entries()] == [
        "reserve",
        "lost",
        "reserve",
        "commit",
    ]


# --- plans of joins ---


def test_a_word_on_the_rounds_is_not_sent_for_a_join(config: ClientConfig, site: Site) -> None:
    site.ledger.decide(said(LATE, joins=False))
    script = Script(protocol=2)
    plan = script.ask(LATE, joins=True, rounds=1, round_number=LATE.last_round + 1)
    answered = consider(plan, config, site.ledger, script.client())
    assert answered is (config.consent == "policy")
    assert [each.by for each in script.said] == (["policy"] if answered else [])
    word = word_of(site, config)
    assert word is not None
    assert word.joins is answered


def test_a_managed_client_that_comes_later_joins_by_the_queue(
    config: ClientConfig, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = join_order(LATE)
    script = Script(protocol=2, orders=[order])
    script.ask(LATE, joins=True, rounds=1, round_number=order.round_number)
    client, site_config = script.client(), make_site_config(state_dir, config)
    monkeypatch.setattr(tasks, "coordinator", lambda: client)
    monkeypatch.setattr(tasks, "site_config", lambda: site_config)
    monkeypatch.setattr(tasks, "settings", lambda: WorkerSettings(device="cpu"))
    monkeypatch.setattr(tasks, "stopping", threading.Event())
    answered = tasks.consent.apply(args=("plan-run-1",), throw=True).result
    outcome = tasks.train.apply(args=(order.work_id,), throw=True).result
    by_policy = config.consent == "policy"
    assert (answered, outcome) == (
        ("answered", "accepted") if by_policy else ("awaits-a-person", "plan-refused")
    )


def test_a_plan_of_a_second_join_is_refused(config: ClientConfig, site: Site) -> None:
    first = join_order(LATE)
    site.ledger.reserve(first, config, lambda _: None)
    site.ledger.commit(AttemptKey.of(first), b"a sketch")
    script = Script(protocol=2)
    policy = config.model_copy(update={"consent": "policy"})
    for number, decision in ((first.round_number, "approve"), (first.round_number + 1, "refuse")):
        script.plans.clear()
        plan = script.ask(LATE, joins=True, rounds=1, round_number=number)
        assert consider(plan, policy, site.ledger, script.client())
        assert script.said[-1].decision == decision


# --- the command ---


class Founded(Script):
    """A completed run that site-a has founded and approved: its coordinator asks it no more, and
    hands out the order of a join as soon as it is asked for."""

    def __init__(self, state: str = "completed") -> None:
        super().__init__(protocol=2, before=self.answer)
        self.state, self.joins = state, list[dict[str, Any]]()
        self.ask(FOUNDED, joins=True, rounds=1, state="approved")

    def answer(self, request: httpx.Request) -> httpx.Response | None:
        path = "/v1/runs/run-1"
        if request.url.path == path:
            spec = FOUNDED.model_dump(mode="json")
            return httpx.Response(200, json={"name": "trial", "state": self.state, "spec": spec})
        if request.url.path == f"{path}/model":
            return httpx.Response(200, json={"clients": ["site-a"]})
        if request.url.path != f"{path}/joins":
            return None
        if request.method == "POST":
            if self.state != "completed":
                return problem(409, "conflict", detail="takes part in this run already")
            self.asked()
            return httpx.Response(201, json=self.joins[-1])
        if self.joins and self.joins[-1]["state"] == "open" and self.accepted:
            self.joins[-1]["state"] = "published"
        after = int(request.url.params.get("after", 0))
        items = [item for item in self.joins if item["round"] > after]
        return httpx.Response(200, json={"items": items, "next": None})

    def asked(self) -> None:
        order = join_order(FOUNDED, later=len(self.joins) + 1)
        self.joins.append(
            {
                "run_id": "run-1", "round": order.round_number, "state": "open", "why": "",
                "clients": ["site-a"], "members": [{"client": "site-a", "why": ""}],
            }
        )  # fmt: skip
        self.orders.append(order)


def test_a_founding_client_says_its_word_before_it_asks(
    config: ClientConfig, state_dir: Path
) -> None:
    """A running agent is given the order at once: a word that came later would be too late."""
    script = Founded()
    with Site.open(state_dir) as site:
        site.ledger.decide(said(FOUNDED, joins=False, by="person"))
    asked = script.asked

    def by_the_agent() -> None:
        asked()
        with Site.open(state_dir) as site, site.lock("site-a"):
            assert perform(script.orders[0], config, script.place(site)) is Outcome.ACCEPTED

    script.asked = by_the_agent  # type: ignore[method-assign]
    done = join_run(script.client(), make_site_config(state_dir, config), "run-1", "site-a")
    assert done.round_number == FOUNDED.last_round + 1
    assert len(script.accepted) == 1
    with Site.open(state_dir) as site:
        word = word_of(site, config)
        assert word is not None
        assert (word.joins, word.by) == (
            True, "person" if config.consent == "ask" else "policy",
        )  # fmt: skip


def test_of_a_run_that_goes_on_no_join_is_written_down(
    config: ClientConfig, state_dir: Path
) -> None:
    """It would take back the word on the rounds."""
    with Site.open(state_dir) as site:
        site.ledger.decide(said(FOUNDED, joins=False))
    with pytest.raises(Exception, match="takes part in this run already"):
        join_run(
            Founded("running").client(), make_site_config(state_dir, config), "run-1", "site-a"
        )
    with Site.open(state_dir) as site:
        assert word_of(site, config) == said(FOUNDED, joins=False)


def test_a_sketch_that_was_sent_is_not_asked_for_again(
    config: ClientConfig, state_dir: Path
) -> None:
    """Its round failed at the coordinator, which would reserve a second one."""
    script = Founded()
    script.asked()
    script.joins[-1]["state"] = "failed"
    with Site.open(state_dir) as site:
        order = join_order(FOUNDED)
        site.ledger.reserve(order, config, lambda _: None)
        site.ledger.commit(AttemptKey.of(order), b"a sketch")
    with pytest.raises(JoinFailed, match="joined this run already") as refused:
        join_run(script.client(), make_site_config(state_dir, config), "run-1", "site-a")
    assert "Join another run" in (refused.value.mend or "")
    assert len(script.joins) == 1
