"""The agent's loop: reconnects for ever, refuses clearly, stops cleanly."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from core.training.compute import Compute
from core.wire.messages import WorkOrder
from tests.worker.support import (
    Script,
    make_config,
    make_order,
    make_site_config,
    make_spec,
    problem,
)
from worker.agent import loop
from worker.agent.records import AttemptKey
from worker.agent.site import Site
from worker.agent.spend import SiteLedger
from worker.config import ClientConfig
from worker.errors import ApiProblem, ClientBusy, ConfigError, SiteStateError


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(loop, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(loop, "_DATA_PAUSE_S", 0.05)
    monkeypatch.setattr("worker.delivery._FIRST_PAUSE_S", 0.01)


@pytest.fixture
def log() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def agent(state_dir: Path, config: ClientConfig) -> Callable[..., None]:
    def run(script: Script, *, until: Callable[[], bool], clients: Any = None) -> None:
        """Serve in this thread until the condition holds (or a minute has passed)."""
        site = make_site_config(state_dir, *(clients or (config,)))
        stopper = loop.Stopper()
        real = script.before

        def before(request: httpx.Request) -> httpx.Response | None:
            if until() or time.monotonic() > deadline:
                stopper.event.set()
            return real(request)

        deadline = time.monotonic() + 60
        script.before = before
        loop.run_agent(
            script.client(), site, compute=Compute(device="cpu"), poll_s=0.0, stopper=stopper
        )

    return run


def events(log: list[Any]) -> list[str]:
    return [line["event"] for line in log]


def test_work_is_done_and_said_step_by_step(agent: Any, log: list[Any]) -> None:
    script = Script(orders=[make_order()])
    agent(script, until=lambda: bool(script.accepted))
    assert len(script.accepted) == 1
    steps = ["agent_started", "work_received", "order_judged", "attempt_reserved",
             "attempt_committed", "update_accepted", "work_ended", "agent_stopped"]  # fmt: skip
    assert [e for e in events(log) if e in steps] == steps


def test_a_coordinator_that_is_away_is_tried_again_for_ever(agent: Any, log: list[Any]) -> None:
    script = Script(orders=[make_order()])
    failures = iter(range(40))

    def away(_: httpx.Request) -> httpx.Response | None:
        number = next(failures, None)
        if number is None:
            return None
        if number % 2:
            return httpx.Response(503)
        raise httpx.ConnectError("refused")

    script.before = away
    agent(script, until=lambda: bool(script.accepted))
    assert len(script.accepted) == 1
    assert "coordinator_away" in events(log)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_ends_the_agent(agent: Any, status: int) -> None:
    script = Script()
    script.before = lambda _: problem(status, "unauthenticated")
    with pytest.raises(ApiProblem):
        agent(script, until=lambda: False)


def test_the_token_of_another_client(agent: Any) -> None:
    script = Script(me={"id": "x", "name": "site-z", "unit": "record", "population": "a/all"})
    with pytest.raises(ConfigError, match="it has: site-a"):
        agent(script, until=lambda: False)


@pytest.mark.parametrize(("key", "value"), [("unit", "patient"), ("population", "b/all")])
def test_enrolment_and_configuration_must_agree(agent: Any, key: str, value: str) -> None:
    script = Script()
    script.me = {**script.me, key: value}
    with pytest.raises(ConfigError, match=key):
        agent(script, until=lambda: False)


def test_one_agent_per_client(agent: Any, state_dir: Path) -> None:
    with Site.open(state_dir) as site, site.lock("site-a"), pytest.raises(ClientBusy):
        agent(Script(), until=lambda: False)


def test_without_its_data_file_no_work_is_asked_for(
    agent: Any, config: ClientConfig, state_dir: Path, log: list[Any]
) -> None:
    hidden = config.data.with_suffix(".away")
    config.data.rename(hidden)
    script = Script(orders=[make_order()])

    def put_back() -> None:
        deadline = time.monotonic() + 20.0
        while "data_not_there" not in events(log) and time.monotonic() < deadline:
            time.sleep(0.01)
        hidden.rename(config.data)

    threading.Thread(target=put_back, daemon=True).start()
    agent(script, until=lambda: bool(script.accepted))
    assert "data_not_there" in events(log)
    with Site.open(state_dir) as site:
        assert [row.kind for row in site.ledger.entries()] == ["reserve", "commit"]


@pytest.mark.parametrize("where", ["spec", "event"])
def test_sigma_zero_is_given_back_as_refused(
    agent: Any, config: ClientConfig, state_dir: Path, where: str, log: list[Any]
) -> None:
    """The message does not even parse: nothing of it is judged, reserved or opened."""
    order = make_order()
    script = Script(orders=[order])
    raw = order.model_dump(mode="json")
    if where == "spec":
        raw["spec"]["noise"]["sketch_multiplier"] = 0.0
    else:
        raw["event"]["noise_multiplier"] = 0.0

    def zero(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("/work") and script.orders:
            return httpx.Response(200, json=raw)
        return None

    script.before = zero
    agent(script, until=lambda: bool(script.failures))
    assert script.failures == [(order.work_id, "plan-refused")]
    assert "plan_refused" in events(log)
    assert order.lease_token not in str(log)
    with Site.open(state_dir) as site:
        assert site.ledger.is_unused()


def test_a_refused_plan_does_not_stop_the_agent(agent: Any) -> None:
    greedy = make_order(make_spec(run_id="greedy", purpose="simulation"))
    script = Script(orders=[greedy, make_order()])
    agent(script, until=lambda: bool(script.accepted))
    assert script.failures == [(greedy.work_id, "plan-refused")]
    assert len(script.accepted) == 1


def test_a_restarted_agent_sends_what_was_left_before_it_asks_for_work(
    agent: Any, state_dir: Path, config: ClientConfig
) -> None:
    committed, begun = make_order(attempt=1), make_order(attempt=2)
    with Site.open(state_dir) as site:
        for order in (committed, begun):
            site.ledger.reserve(order, config, lambda _: None)
        update = site.ledger.commit(AttemptKey.of(committed), b"stored before the restart")
    script = Script(orders=[committed, begun])
    script.before = lambda r: httpx.Response(204) if r.url.path.endswith("/work") else None
    agent(script, until=lambda: bool(script.accepted))
    assert list(script.accepted.values()) == [update.digest]
    assert script.failures == [(begun.work_id, "site-not-ready")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_agent_stops_at_once(
    state_dir: Path, config: ClientConfig, number: signal.Signals, log: list[Any]
) -> None:
    script = Script()
    asleep = threading.Event()

    def poll(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("/work"):
            asleep.set()
            time.sleep(30)
        return None

    script.before = poll

    def send() -> None:
        asleep.wait(5)
        time.sleep(0.3)  # until the main thread is inside its system call
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    begun = time.monotonic()
    loop.run_agent(script.client(), make_site_config(state_dir, config), poll_s=30)
    assert time.monotonic() - begun < 10
    assert events(log)[-1] == "agent_stopped"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _during_work(monkeypatch: pytest.MonkeyPatch, signals: int) -> None:
    from core.training import local

    real = local.execute

    def execute(order: WorkOrder, *args: Any, **kwargs: Any) -> local.Released:
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(order, *args, **kwargs)

    monkeypatch.setattr(local, "execute", execute)


def test_the_work_in_hand_is_finished(
    state_dir: Path, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _during_work(monkeypatch, 1)
    script = Script(orders=[make_order()])
    loop.run_agent(
        script.client(), make_site_config(state_dir, config), compute=Compute(device="cpu")
    )
    assert len(script.accepted) == 1
    assert script.failures == []


def test_a_second_signal_gives_the_work_back(
    state_dir: Path, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _during_work(monkeypatch, 2)
    order = make_order()
    script = Script(orders=[order])
    loop.run_agent(
        script.client(), make_site_config(state_dir, config), compute=Compute(device="cpu")
    )
    assert script.accepted == {}
    assert script.failures == [(order.work_id, "site-not-ready")]
    with Site.open(state_dir) as site:
        assert [row.kind for row in site.ledger.entries()] == ["reserve", "lost"]


def test_an_agent_leaves_other_clients_alone(
    agent: Any, config: ClientConfig, state_dir: Path
) -> None:
    other = make_config(config.data, name="site-b", population="b/all")
    order = make_order(client="site-b")
    with Site.open(state_dir) as site:
        site.ledger.reserve(order, other, lambda _: None)
    script = Script(orders=[make_order()])
    agent(script, until=lambda: bool(script.accepted), clients=(config, other))
    with Site.open(state_dir) as site:
        assert len(site.ledger.unfinished("site-b")) == 1


def test_a_ledger_that_cannot_be_written_costs_one_attempt_and_the_agent_lives_on(
    agent: Any, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk that is freed later. Nothing is asked for until the ledger can be written."""
    full = SiteStateError("the ledger cannot be written: disk full.")
    script = Script(orders=[make_order()], reissue=lambda number: make_order(attempt=number))
    real_reserve, real_probe = SiteLedger.reserve, SiteLedger.probe
    failures = {"reserve": 1, "probe": 3}
    polls_before: list[int] = []

    def polls() -> int:
        return sum(call.endswith("/work") for call in script.calls)

    def reserve(self: SiteLedger, *args: Any) -> None:
        if failures["reserve"]:
            failures["reserve"] -= 1
            polls_before.append(polls())
            raise full
        real_reserve(self, *args)

    def probe(self: SiteLedger) -> None:
        if failures["probe"]:
            failures["probe"] -= 1
            assert polls() == polls_before[0]
            raise full
        real_probe(self)

    monkeypatch.setattr(SiteLedger, "reserve", reserve)
    monkeypatch.setattr(SiteLedger, "probe", probe)
    agent(script, until=lambda: bool(script.accepted))
    assert [code for _, code in script.failures] == ["site-not-ready"]
    assert len(script.accepted) == 1
    assert failures == {"reserve": 0, "probe": 0}
    assert events(log).count("site_not_usable") == 4
