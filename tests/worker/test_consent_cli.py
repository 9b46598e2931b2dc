"""``agent plans``, ``approve``, ``refuse``, and the task that answers for managed clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from celery.exceptions import Retry
from click.testing import Result
from typer.testing import CliRunner

from core.privacy.accounting import epsilon
from tests.worker.support import (
    Script,
    make_config,
    make_order,
    make_site_config,
    make_spec,
    problem,
    write_records,
)
from worker import tasks
from worker.agent.site import Site
from worker.cli import agent_app
from worker.config import ClientConfig, WorkerSettings, load_site
from worker.errors import ConfigError

Run = Callable[..., Result]
CLIENT = (
    '[[client]]\nname = "{name}"\ndata = "site-a.npz"\nunit = "record"\npopulation = "a/all"\n'
    'max_epsilon = {limit}\ndelta = 1e-5\nmin_noise_multiplier = 0.3\nconsent = "{consent}"\n'
)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command of a site whose two clients are over one population."""
    write_records(tmp_path / "site-a.npz")

    def run(script: Script, *arguments: str, limit: float = 8.0, consent: str = "ask") -> Result:
        clients = [
            CLIENT.format(name=name, limit=limit, consent=consent) for name in ("site-a", "site-b")
        ]
        (tmp_path / "site.toml").write_text('[site]\nstate_dir = "state"\n' + "".join(clients))
        monkeypatch.setenv("FHV_SITE_CONFIG", str(tmp_path / "site.toml"))
        monkeypatch.setenv("FHV_TOKEN", "fhv_client_secret")
        monkeypatch.setattr("worker.client.CoordinatorClient", lambda *_, **__: script.client())
        return CliRunner().invoke(agent_app, list(arguments))

    yield run
    structlog.reset_defaults()


def as_worker(script: Script) -> Script:
    """The token is a worker's: there is no client of its own, and all managed ones are its."""
    script.before = lambda r: problem(403, "forbidden") if r.url.path == "/v1/clients/me" else None
    return script


def said(script: Script) -> list[tuple[str, str, str]]:
    return [(each.client, each.decision, each.by) for each in script.said]


def test_plans_show_what_a_run_costs_here(agent: Run) -> None:
    script, spec = Script(protocol=2), make_spec()
    script.ask(deadline="2026-03-01T13:00:00Z")
    price = epsilon(spec.events(), 1e-5)
    shown = agent(script, "plans")
    assert shown.exit_code == 0, shown.output
    for text in ("test", "site-a", f"{price:.4g}", "allows", "asked", "2026-03-01T13:00"):
        assert text in shown.stdout
    (plan,) = json.loads(agent(script, "plans", "--json").stdout)["plans"]
    assert (plan["epsilon_plan"], plan["epsilon_spent"], plan["epsilon_after"]) == (
        price,
        0.0,
        price,
    )
    assert (plan["policy"], plan["word"], plan["state"]) == ("allows", None, "asked")
    refusing = agent(script, "plans", limit=1.0)
    assert "refuses" in refusing.stdout
    assert "above 1 (plan.privacy.epsilon)" in refusing.stdout
    assert script.said == []
    script.plans.clear()
    assert "nothing awaits this site's word" in agent(script, "plans").stdout


@pytest.mark.parametrize("run", ["run-1", "test"])
def test_a_person_approves_by_id_or_name(agent: Run, tmp_path: Path, run: str) -> None:
    script = Script(protocol=2)
    script.ask()
    done = agent(script, "approve", run)
    assert done.exit_code == 0, done.output
    price = epsilon(make_spec().events(), 1e-5)
    assert "site-a: run test (run-1) is approved" in done.stdout
    assert f"goes from 0 to {price:.4g} of 8" in done.stdout
    assert said(script) == [("site-a", "approve", "person")]
    again = agent(script, "approve", run)
    assert again.exit_code == 0
    with Site.open(tmp_path / "state") as site:
        word = site.ledger.word("run-1", "site-a")
    assert word is not None
    assert (word.decision, word.spec_digest) == ("approve", make_spec().digest)
    shown = json.loads(agent(script, "plans", "--all", "--json").stdout)["plans"]
    assert [(p["word"], p["state"]) for p in shown] == [("approve", "approved")]
    assert json.loads(agent(script, "plans", "--json").stdout)["plans"] == []


def test_the_limits_hold_for_a_person_too(agent: Run, tmp_path: Path) -> None:
    script = Script(protocol=2)
    script.ask()
    refused = agent(script, "approve", "run-1", limit=1.0)
    assert refused.exit_code == 1
    assert "whoever approves it" in refused.stderr
    assert "above 1" in refused.stderr
    assert script.said == []
    with Site.open(tmp_path / "state") as site:
        assert site.ledger.word("run-1", "site-a") is None


def test_a_person_refuses_with_a_reason(agent: Run) -> None:
    script = Script(protocol=2)
    script.ask()
    done = agent(script, "refuse", "run-1", "--why", "not this time", limit=1.0)
    assert done.exit_code == 0, done.output
    assert "is refused" in done.stdout
    assert [each.why for each in script.said] == ["not this time"]
    long = agent(script, "refuse", "run-1", "--why", "x" * 201)
    assert long.exit_code == 2
    changed = agent(script, "approve", "run-1")
    assert changed.exit_code == 1
    assert "the coordinator says: detail of conflict" in changed.stderr
    assert "Leave the run." in changed.stderr


def test_a_run_that_does_not_ask(agent: Run) -> None:
    script = Script(protocol=2)
    unknown = agent(script, "approve", "run-9")
    assert unknown.exit_code == 1
    assert "site-a, site-b" in unknown.stderr
    assert "agent plans --all" in unknown.stderr
    nobody = agent(script, "approve", "run-9", "--client", "site-z")
    assert nobody.exit_code == 1
    assert "it has: site-a, site-b" in nobody.stderr
    script.ask()
    other = agent(script, "approve", "run-1", "--client", "site-b")  # not this token's client
    assert other.exit_code == 1
    assert script.said == []


def test_two_clients_of_one_population_and_a_workers_token(agent: Run, tmp_path: Path) -> None:
    """What the first one has spent is in what the second one is shown, and is held against it."""
    script, spec = as_worker(Script(protocol=2)), make_spec()
    script.ask()
    script.ask(plan_id="plan-b", client="site-b", client_id="id-of-site-b")
    one, two = epsilon(spec.events(), 1e-5), epsilon(spec.events() * 2, 1e-5)
    first = agent(script, "approve", "run-1", "--client", "site-a")
    assert first.exit_code == 0, first.output
    config = make_config(tmp_path / "site-a.npz")
    with Site.open(tmp_path / "state") as site:
        for number in range(spec.last_round + 1):
            site.ledger.reserve(make_order(spec, round_number=number), config, lambda _: None)
    (plan,) = json.loads(agent(script, "plans", "--json").stdout)["plans"]
    assert plan["client"] == "site-b"
    assert (plan["epsilon_plan"], plan["epsilon_spent"], plan["epsilon_after"]) == (one, one, two)
    between = (one + two) / 2
    refused = agent(script, "approve", "run-1", limit=between)
    assert refused.exit_code == 1
    assert "site-a: " not in refused.stdout
    second = agent(script, "approve", "run-1", limit=two * 1.001)
    assert second.exit_code == 0, second.output
    assert f"goes from {one:.4g} to {two:.4g}" in second.stdout
    assert said(script)[-1] == ("site-b", "approve", "person")


def test_at_a_coordinator_that_asks_nobody_the_sites_own_record_is_all(
    agent: Run, tmp_path: Path
) -> None:
    spec = make_spec()
    runs = [
        {"name": "test", "spec": spec.model_dump(mode="json"), "clients": ["site-0", "site-a"],
         "state": state}
        for state in ("completed", "draft")
    ]  # fmt: skip
    script = Script(protocol=1)
    script.before = lambda r: (
        httpx.Response(200, json={"items": runs, "next": None})
        if r.url.path == "/v1/runs"
        else None
    )
    (plan,) = json.loads(agent(script, "plans", "--json").stdout)["plans"]
    assert (plan["client"], plan["state"]) == ("site-a", "not asked")
    done = agent(script, "approve", "test")
    assert done.exit_code == 0, done.output
    assert not any("consents" in call for call in script.calls)
    with Site.open(tmp_path / "state") as site:
        assert site.ledger.word("run-1", "site-a") is not None


def test_consent_is_policy_or_ask(tmp_path: Path) -> None:
    write_records(tmp_path / "site-a.npz")
    path = tmp_path / "site.toml"
    text = '[site]\nstate_dir = "state"\n' + CLIENT.format(name="a", limit=8.0, consent="maybe")
    path.write_text(text)
    with pytest.raises(ConfigError, match="consent"):
        load_site(path)
    path.write_text(text.replace('consent = "maybe"\n', ""))
    assert load_site(path).client[0].consent == "policy"


# --- managed clients ---


@pytest.fixture
def serve(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path, config: ClientConfig
) -> Callable[..., None]:
    def point(script: Script, **changes: Any) -> None:
        client = script.client()
        site = make_site_config(state_dir, config.model_copy(update=changes))
        monkeypatch.setattr(tasks, "coordinator", lambda: client)
        monkeypatch.setattr(tasks, "site_config", lambda: site)
        monkeypatch.setattr(tasks, "settings", lambda: WorkerSettings(device="cpu"))
        monkeypatch.setattr(tasks, "stopping", threading.Event())

    return point


def run(plan_id: str = "plan-1") -> Any:
    return tasks.consent.apply(args=(plan_id,), throw=True).result


def test_a_worker_answers_for_its_clients_by_policy(serve: Callable[..., None]) -> None:
    script = Script(protocol=2)
    script.ask()
    script.ask(make_spec(run_id="run-2"), client="site-z")  # another worker's
    serve(script)
    assert run() == "answered"
    assert said(script) == [("site-a", "approve", "policy")]
    assert run() == "nothing-asked"
    script.ask(make_spec(run_id="run-3"))
    serve(script, max_epsilon=0.5)
    assert run() == "answered"
    assert said(script)[-1] == ("site-a", "refuse", "policy")


def test_a_worker_leaves_to_a_person_what_a_person_must_say(
    serve: Callable[..., None], agent: Run, state_dir: Path
) -> None:
    script = as_worker(Script(protocol=2))
    script.ask()
    serve(script, consent="ask")
    assert run() == "awaits-a-person"
    assert script.said == []
    assert agent(script, "approve", "run-1").exit_code == 0
    assert said(script) == [("site-a", "approve", "person")]
    assert run() == "nothing-asked"


def test_without_a_coordinator_the_message_comes_back_later(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(protocol=2)
    script.ask()
    script.before = lambda r: httpx.Response(503) if r.method == "POST" else None
    serve(script)
    monkeypatch.setattr(tasks.consent, "retry", lambda **_: Retry("later"))
    with pytest.raises(Retry):
        run()


def test_a_site_that_cannot_be_opened_says_nothing(
    serve: Callable[..., None], state_dir: Path
) -> None:
    Site.open(state_dir).close()
    for path in state_dir.glob("ledger*"):
        path.unlink()
    script = Script(protocol=2)
    script.ask()
    serve(script)
    assert run() == "ledger-lost"
    assert script.said == []
