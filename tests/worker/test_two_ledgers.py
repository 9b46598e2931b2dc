"""Site and coordinator, both real, over real HTTP: what ``agent verify-ledger`` finds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from core.federation import rule
from core.privacy.accounting import epsilon
from tests.api.support import a_plan, calibrate
from tests.worker.real import DELTA, Federation, commands, federation, issue
from worker.agent.reconcile import verify
from worker.agent.records import ACCEPTED
from worker.agent.site import Site
from worker.agent.verify import Comparison
from worker.config import SiteConfig
from worker.execution import Outcome

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def fed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_fhv_environment: None
) -> Iterator[Federation]:
    monkeypatch.setattr(rule, "calibrate", calibrate)
    with federation(database_url, tmp_path) as running:
        yield running


def compared(fed: Federation, name: str, site_config: SiteConfig) -> Comparison:
    config = site_config.require(name)
    with Site.open(site_config.state_dir) as site, fed.client(name) as coordinator:
        return verify(site, coordinator, fed.ids[name], config, site_config)


def kinds(found: Comparison) -> list[str]:
    return sorted(finding.kind for finding in found.findings)


@pytest.fixture
def command(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    return commands(fed, monkeypatch)


def test_one_population_from_a_clean_run_to_every_kind_of_tampering(
    fed: Federation, command: Callable[..., Result]
) -> None:
    fed.enrol("site-a", "a/all")
    mine = fed.config("state", "a/all", "site-a")
    fed.start("run-1", "site-a")
    lost = fed.give_back("site-a")
    fed.finish({"site-a": mine}, rounds=2)

    # Clean, with the one attempt that was lost before it began listed.
    found = compared(fed, "site-a", mine)
    assert kinds(found) == ["lost-unexecuted"]
    assert found.findings[0].key == (lost.run_id, 0, 1, "site-a")
    assert (found.executed, found.charged_here, found.charged_there) == (2, 2, 3)
    with Site.open(mine.state_dir) as site:
        events = [attempt.event for attempt in site.ledger.standings("a/all")]
    assert found.epsilon_here == epsilon(events, DELTA)
    assert found.epsilon_there == epsilon([*events, lost.event], DELTA) > found.epsilon_here
    with fed.client("site-a") as coordinator:
        ledger = coordinator.client_ledger(fed.ids["site-a"])
        statement = coordinator.client_statement(fed.ids["site-a"])
        table = coordinator.client_ledger_table(fed.ids["site-a"])
    assert ledger["epsilon_total"] == statement["epsilon"]["total"] == found.epsilon_there
    assert table.count("\r\n") == 1 + len(ledger["entries"])

    with fed.client("site-a") as coordinator:
        forecast = coordinator.plan_budget(a_plan("next", round={"quorum": 1}), ["site-a"])
    assert forecast["clients"][0]["epsilon_spent"] == found.epsilon_there

    done = command(mine, fed.tokens["site-a"], "verify-ledger")
    assert (done.exit_code, "the two ledgers agree" in done.stdout) == (0, True), done.output
    assert "lost there, never begun here" in done.stdout
    plain = json.loads(command(mine, fed.tokens["site-a"], "verify-ledger", "--json").stdout)
    (account,) = plain["accounts"]
    assert account["clean"]
    assert account["epsilon"] == {"here": found.epsilon_here, "there": found.epsilon_there}

    # A coordinator that books more noise than was drawn. The site's own book knows better.
    before = fed.sql(
        "SELECT id, event FROM ledger_entries WHERE round_number = 1 AND kind = 'reserve'"
    )
    (entry_id, event) = before[0]
    quieter = json.dumps({**event, "noise_multiplier": event["noise_multiplier"] * 2})
    fed.sql("UPDATE ledger_entries SET event = %s::jsonb WHERE id = %s", quieter, entry_id)
    found = compared(fed, "site-a", mine)
    assert [finding.kind for finding in found.discrepancies] == ["event-differs"]
    assert "noise_multiplier" in found.discrepancies[0].says
    done = command(mine, fed.tokens["site-a"], "verify-ledger")
    assert done.exit_code == 1
    assert "PROBLEM event-differs" in done.stdout
    assert not json.loads(command(mine, fed.tokens["site-a"], "verify-ledger", "--json").stdout)[
        "accounts"
    ][0]["clean"]
    fed.sql(
        "UPDATE ledger_entries SET event = %s::jsonb WHERE id = %s", json.dumps(event), entry_id
    )
    assert compared(fed, "site-a", mine).discrepancies == ()

    # A commit that the coordinator acknowledged and no longer has.
    fed.sql("DELETE FROM ledger_entries WHERE reserve_id = %s", entry_id)
    assert [f.kind for f in compared(fed, "site-a", mine).discrepancies] == ["missing-commit"]
    fed.sql("DELETE FROM ledger_entries WHERE id = %s", entry_id)
    found = compared(fed, "site-a", mine)
    assert [f.kind for f in found.discrepancies] == ["unknown-there"]


def test_a_commit_that_the_site_never_executed(fed: Federation) -> None:
    """Somebody with the client's token posts an update of his own: the site has no trace of it."""
    fed.enrol("site-a", "a/all")
    mine = fed.config("state", "a/all", "site-a")
    run_id = fed.start("run-1", "site-a")
    thief = fed.config("thief", "a/all", "site-a")
    assert fed.work("site-a", thief) is Outcome.ACCEPTED
    Site.open(mine.state_dir).close()
    found = compared(fed, "site-a", mine)
    assert [(f.kind, f.key) for f in found.discrepancies] == [
        ("never-executed", (run_id, 0, 1, "site-a"))
    ]
    assert "Revoke the token" in found.discrepancies[0].mend
    assert compared(fed, "site-a", thief).discrepancies == ()


def test_two_clients_of_one_population_are_one_account(fed: Federation) -> None:
    fed.enrol("site-a", "shared")
    fed.enrol("twin", "shared")
    both = fed.config("state", "shared", "site-a", "twin")
    fed.start("run-1", "site-a", "twin")
    assert fed.work("site-a", both) is Outcome.ACCEPTED
    order = fed.order("twin")  # claimed, not begun

    found = compared(fed, "site-a", both)
    assert kinds(found) == ["not-begun"]
    assert found.findings[0].key == (order.run_id, 0, 1, "twin")
    assert fed.work("twin", both) is Outcome.ACCEPTED
    for name in ("site-a", "twin"):
        assert compared(fed, name, both).findings == ()
    with Site.open(both.state_dir) as site:
        assert [a.delivery for a in site.ledger.standings("shared")] == [ACCEPTED, ACCEPTED]

    # The twin on a machine of its own counts apart: that is the discrepancy.
    alone = fed.config("state", "shared", "site-a")
    apart = fed.config("other", "shared", "site-a")
    with Site.open(apart.state_dir):
        pass
    kinds_there = {f.kind for f in compared(fed, "site-a", apart).discrepancies}
    assert kinds_there == {"never-executed", "elsewhere"}
    assert compared(fed, "site-a", alone).discrepancies == ()


def test_an_auditors_token_verifies_all_populations_of_a_site(
    fed: Federation, command: Callable[..., Result]
) -> None:
    fed.enrol("site-a", "a/all")
    fed.enrol("site-b", "b/all", site="other")
    one, two = (fed.config("state", p, n) for p, n in (("a/all", "site-a"), ("b/all", "site-b")))
    site_config = one.model_copy(update={"client": (*one.client, *two.client)})
    Site.open(site_config.state_dir).close()
    auditor = issue(fed.settings, "auditor")
    done = command(site_config, auditor, "verify-ledger")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("the two ledgers agree") == 2
    only = command(site_config, auditor, "verify-ledger", "--client", "site-b")
    assert "b/all" in only.stdout
    assert "a/all" not in only.stdout
    for token, client, says in (
        (issue(fed.settings, "worker"), "site-a", "may not do that"),
        (fed.tokens["site-a"], "site-b", "may not read the ledger of 'site-b'"),
        (fed.tokens["site-a"], "nobody", "no client 'nobody'"),
    ):
        refused = command(site_config, token, "verify-ledger", "--client", client)
        assert refused.exit_code == 1
        assert says in refused.stderr
