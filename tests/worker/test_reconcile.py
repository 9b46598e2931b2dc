"""A restored ledger, completed from the coordinator's: never fewer than what was executed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import stamina
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from core.federation import rule
from core.privacy.accounting import epsilon
from core.training.compute import Compute
from tests.api.support import calibrate
from tests.worker.real import DELTA, Federation, commands, federation, issue
from tests.worker.test_verify import HONEST, History, both, judged
from worker.agent import backup
from worker.agent.loop import Stopper, run_agent
from worker.agent.reconcile import _missing, reconcile, verify
from worker.agent.records import OurAttempt
from worker.agent.site import LEDGER_FILE, Site
from worker.agent.theirs import read_ledger
from worker.config import SiteConfig
from worker.errors import LedgerLost, NotReconciled, Unreachable
from worker.execution import Outcome

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def fed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_fhv_environment: None
) -> Iterator[Federation]:
    monkeypatch.setattr(rule, "calibrate", calibrate)
    with federation(database_url, tmp_path) as running:
        yield running


@pytest.fixture
def command(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    return commands(fed, monkeypatch)


def lose(site_config: SiteConfig) -> list[OurAttempt]:
    """Delete the ledger; what it held."""
    population = site_config.client[0].population
    with Site.open(site_config.state_dir) as site:
        held = site.ledger.standings(population)
    for path in site_config.state_dir.glob(f"{LEDGER_FILE}*"):
        path.unlink()
    return held


def standings(site_config: SiteConfig) -> list[OurAttempt]:
    with Site.open(site_config.state_dir) as site:
        return site.ledger.standings(site_config.client[0].population)


def completed(fed: Federation, name: str, site_config: SiteConfig) -> int | None:
    config = site_config.require(name)
    with Site.open(site_config.state_dir) as site, fed.client(name) as coordinator:
        return reconcile(site, coordinator, fed.ids[name], config, site_config)


def test_an_old_backup_is_completed_and_the_site_works_on(
    fed: Federation, command: Callable[..., Result]
) -> None:
    fed.enrol("site-a", "a/all")
    mine = fed.config("state", "a/all", "site-a")
    fed.start("run-1", "site-a")
    fed.finish({"site-a": mine}, rounds=1)
    copy = fed.folder / "copy"
    made = command(mine, None, "backup", str(copy))
    assert (made.exit_code, "read back" in made.stdout) == (0, True), made.output

    fed.finish({"site-a": mine}, rounds=1)  # the backup does not know of this round
    executed = lose(mine)
    assert len(executed) == 2
    with pytest.raises(LedgerLost):
        Site.open(mine.state_dir)

    # Without a coordinator that answers, the backup is in place and nothing can be spent.
    with stamina.set_testing(True, attempts=2):
        silent = command(mine, fed.tokens["site-a"], "restore", str(copy), url="http://127.0.0.1:9")
    assert silent.exit_code == 1
    assert "Nothing can be spent" in silent.stdout
    assert "no answer from http://127.0.0.1:9" in silent.stderr
    fed.start("run-2", "site-a")
    with pytest.raises(NotReconciled):
        fed.work("site-a", mine)
    assert len(standings(mine)) == 1

    done = command(mine, fed.tokens["site-a"], "reconcile")
    assert done.exit_code == 0, done.output
    # The lost round, and the offer of run-2 that was handed out meanwhile.
    assert "population a/all: charged 2 attempts as lost" in done.stdout
    after = standings(mine)
    assert {a.key for a in executed} <= {a.key for a in after}
    assert {a.key: a.event for a in executed}.items() <= {a.key: a.event for a in after}.items()
    assert [(a.standing, a.restored) for a in after] == [
        ("commit", False), ("lost", True), ("lost", True),
    ]  # fmt: skip
    assert epsilon([a.event for a in after], DELTA) >= epsilon([a.event for a in executed], DELTA)
    checked = command(mine, fed.tokens["site-a"], "verify-ledger")
    assert checked.exit_code == 0, checked.output
    assert "booked-after-restore" in checked.stdout
    again = command(mine, fed.tokens["site-a"], "reconcile")
    assert (again.exit_code, "nothing to do" in again.stdout) == (0, True)

    # What was charged is never executed; new attempts are, and both ledgers stay in agreement.
    assert fed.work("site-a", mine) is Outcome.GIVEN_BACK
    fed.finish({"site-a": mine}, rounds=2)
    assert command(mine, fed.tokens["site-a"], "verify-ledger").exit_code == 0
    assert [a.standing for a in standings(mine)][-2:] == ["commit", "commit"]


def test_restoring_with_a_coordinator_at_hand_is_one_command(
    fed: Federation, command: Callable[..., Result]
) -> None:
    """Two clients of one population: one token completes the account of both."""
    fed.enrol("site-a", "shared")
    fed.enrol("twin", "shared")
    mine = fed.config("state", "shared", "site-a", "twin")
    fed.start("run-1", "site-a", "twin")
    assert fed.work("site-a", mine) is Outcome.ACCEPTED
    copy = fed.folder / "copy"
    backup.make(mine.state_dir, copy)
    assert fed.work("twin", mine) is Outcome.ACCEPTED
    executed = lose(mine)
    done = command(mine, fed.tokens["site-a"], "restore", str(copy))
    assert done.exit_code == 0, done.output
    assert "charged 1 attempts as lost" in done.stdout
    after = {a.key: a for a in standings(mine)}
    assert set(after) == {a.key for a in executed}
    assert [a.standing for key, a in after.items() if key.client == "twin"] == ["lost"]
    refused = command(mine, fed.tokens["site-a"], "restore", str(copy))
    assert refused.exit_code == 1
    assert "there is a ledger" in refused.stderr
    assert completed(fed, "twin", mine) is None
    fed.aggregate()
    fed.finish({"site-a": mine, "twin": mine}, rounds=1)
    for name in ("site-a", "twin"):
        with Site.open(mine.state_dir) as site, fed.client(name) as coordinator:
            found = verify(site, coordinator, fed.ids[name], mine.require(name), mine)
        assert found.discrepancies == ()


def test_an_agent_completes_a_restored_ledger_before_it_asks_for_work(fed: Federation) -> None:
    fed.enrol("site-a", "a/all")
    mine = fed.config("state", "a/all", "site-a")
    Site.open(mine.state_dir).close()
    backup.make(mine.state_dir, fed.folder / "copy")  # of a site that had spent nothing yet
    fed.start("run-1", "site-a")
    fed.finish({"site-a": mine}, rounds=2)
    executed = lose(mine)
    backup.restore(fed.folder / "copy", mine.state_dir)
    fed.start("run-2", "site-a")

    stopper, failed = Stopper(), []

    def serve() -> None:
        try:
            with fed.client("site-a") as coordinator:
                run_agent(
                    coordinator, mine, compute=Compute(device="cpu"), poll_s=1.0, stopper=stopper
                )
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        fed.aggregate()  # waits until the agent has sent the sketch of run-2
        fed.aggregate()
    finally:
        stopper.event.set()
        thread.join(30)
    assert not failed
    after = standings(mine)
    by_key = {a.key: a for a in after}
    assert all(by_key[a.key].restored for a in executed)
    assert sum(a.standing == "commit" for a in after) == 2
    with Site.open(mine.state_dir) as site, fed.client("site-a") as coordinator:
        found = verify(site, coordinator, fed.ids["site-a"], mine.client[0], mine)
    assert found.discrepancies == ()


@pytest.mark.parametrize("tamper", ["knows-less", "other-event", "lost-instead"])
def test_a_coordinator_that_contradicts_the_backup_cannot_complete_it(
    fed: Federation, tamper: str
) -> None:
    fed.enrol("site-a", "a/all")
    mine = fed.config("state", "a/all", "site-a")
    fed.start("run-1", "site-a")
    fed.finish({"site-a": mine}, rounds=2)
    backup.make(mine.state_dir, fed.folder / "copy")
    lose(mine)
    backup.restore(fed.folder / "copy", mine.state_dir)
    statement = {
        "knows-less": "DELETE FROM ledger_entries WHERE round_number = 1",
        "other-event": "UPDATE ledger_entries SET event = jsonb_set(event, '{noise_multiplier}', "
        "'99.0') WHERE kind = 'reserve' AND round_number = 1",
        "lost-instead": "UPDATE ledger_entries SET kind = 'lost' WHERE kind = 'commit'",
    }[tamper]
    fed.sql(statement)
    before = standings(mine)
    with pytest.raises(NotReconciled, match="contradicts") as refused:
        completed(fed, "site-a", mine)
    assert refused.value.mend
    assert standings(mine) == before
    with Site.open(mine.state_dir) as site:
        assert site.ledger.unreconciled("a/all")


def test_a_client_of_the_population_with_an_account_of_its_own_is_refused(
    fed: Federation,
) -> None:
    """Its ledger would stay unknown: one account must speak for the whole population."""
    fed.enrol("site-a", "shared")
    fed.enrol("twin", "shared", site="another spelling")
    mine = fed.config("state", "shared", "site-a", "twin")
    Site.open(mine.state_dir).close()
    backup.make(mine.state_dir, fed.folder / "copy")
    lose(mine)
    backup.restore(fed.folder / "copy", mine.state_dir)
    with pytest.raises(NotReconciled, match="twin of population 'shared' is not enrolled"):
        completed(fed, "site-a", mine)
    with Site.open(mine.state_dir) as site:
        assert site.ledger.unreconciled("shared")


def test_managed_clients_are_completed_with_an_auditors_token(
    fed: Federation, command: Callable[..., Result]
) -> None:
    fed.enrol("site-a", "a/all")
    fed.enrol("site-b", "b/all", site="other")
    one, two = (fed.config("state", p, n) for p, n in (("a/all", "site-a"), ("b/all", "site-b")))
    both_clients = one.model_copy(update={"client": (*one.client, *two.client)})
    Site.open(both_clients.state_dir).close()
    backup.make(both_clients.state_dir, fed.folder / "copy")
    lose(both_clients)
    partly = command(both_clients, fed.tokens["site-a"], "restore", str(fed.folder / "copy"))
    assert partly.exit_code == 1
    assert "not completed yet: b/all" in partly.stderr
    done = command(both_clients, issue(fed.settings, "auditor"), "reconcile")
    assert done.exit_code == 0, done.output
    assert "population a/all: nothing to do" in done.stdout
    assert "population b/all: charged 0 attempts as lost" in done.stdout


def test_a_silent_coordinator_completes_nothing(fed: Federation) -> None:
    fed.enrol("site-a", "a/all")
    mine = fed.config("state", "a/all", "site-a")
    Site.open(mine.state_dir).close()
    backup.make(mine.state_dir, fed.folder / "copy")
    lose(mine)
    backup.restore(fed.folder / "copy", mine.state_dir)
    gone = replace(fed, url="http://127.0.0.1:9")
    with stamina.set_testing(True, attempts=1), pytest.raises(Unreachable):
        completed(gone, "site-a", mine)
    with Site.open(mine.state_dir) as site:
        assert site.ledger.unreconciled("a/all")


# --- for any history and any moment of the backup ---

_EARLIER = {  # what the site's ledger may have said about an attempt before it came so far
    None: [None],
    "open": [None, "open"],
    "commit": [None, "open", "commit"],
    "lost": [None, "open", "lost"],
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(HONEST), max_size=10), st.data())
def test_no_executed_attempt_counts_less_than_once_after_any_restore(
    past: list[History], data: st.DataObject
) -> None:
    now, raw = both(past)
    backed_up = []
    for attempt in now:
        was = data.draw(st.sampled_from(_EARLIER[attempt.standing]))
        if was is not None:
            delivery = attempt.delivery if was == "commit" else None
            backed_up.append(replace(attempt, standing=was, delivery=delivery))
    missing = {charge.key: charge for charge in _missing(backed_up, read_ledger(raw), _Any())}
    kept = [attempt for attempt in backed_up if attempt.key not in missing]
    restored = [
        OurAttempt(charge.key, charge.event, charge.spec_digest, "lost", restored=True)
        for charge in missing.values()
    ]
    after = [*kept, *restored]
    assert len({attempt.key for attempt in after}) == len(after)
    charged = {attempt.key: attempt.event for attempt in after}
    assert {a.key: a.event for a in now}.items() <= charged.items()
    assert all(attempt.standing != "open" for attempt in after)
    assert judged(after, raw).discrepancies == ()


class _Any(dict[str, str]):
    """A digest for every run."""

    def get(self, key: str, default: object = None) -> str:  # type: ignore[override]
        return "sha256:x"
