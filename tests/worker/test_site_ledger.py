"""The site's ledger and state folder: nothing is ever taken back, lost or spent twice."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import PlanRefused
from core.privacy import accounting
from tests.worker.support import make_config, make_order, make_spec
from worker.agent import schema
from worker.agent.policy import judge
from worker.agent.records import ACCEPTED, AttemptKey, Entry
from worker.agent.restoration import Charge
from worker.agent.site import LEDGER_FILE, SECRET_FILE, Site
from worker.config import ClientConfig
from worker.errors import (
    AttemptKnown,
    ClientBusy,
    DataChanged,
    LedgerLost,
    SecretLost,
    SiteStateError,
)

BODY = b"noised bytes"


def anything(_: list[Entry]) -> None:
    """A check that lets everything pass."""


def reserved(site: Site, config: ClientConfig, attempt: int = 1) -> AttemptKey:
    order = make_order(attempt=attempt)
    site.ledger.reserve(order, config, anything)
    return AttemptKey.of(order)


def test_durability_settings(site: Site) -> None:
    with sqlite3.connect(site.ledger.path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    assert site.ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_an_attempt_is_reserved_once(site: Site, config: ClientConfig) -> None:
    key = reserved(site, config)
    with pytest.raises(AttemptKnown):
        reserved(site, config)
    assert [e.kind for e in site.ledger.entries()] == ["reserve"]
    assert site.ledger.attempt(key).state == "reserved"  # type: ignore[union-attr]


def test_a_refused_check_writes_nothing(site: Site, config: ClientConfig) -> None:
    def no(_: list[Entry]) -> None:
        raise PlanRefused("no")

    with pytest.raises(PlanRefused):
        site.ledger.reserve(make_order(), config, no)
    assert site.ledger.entries() == []
    assert site.ledger.is_unused()


def test_commit_books_and_stores_together(site: Site, config: ClientConfig) -> None:
    key = reserved(site, config)
    update = site.ledger.commit(key, BODY)
    assert update.body == BODY
    assert update.digest == "sha256:" + hashlib.sha256(BODY).hexdigest()
    assert [e.kind for e in site.ledger.entries()] == ["reserve", "commit"]
    assert site.ledger.undelivered(config.name) == [update]
    assert site.ledger.unfinished(config.name) == []


@pytest.mark.parametrize("second", ["commit", "lose"])
def test_an_attempt_has_one_outcome(site: Site, config: ClientConfig, second: str) -> None:
    key = reserved(site, config)
    update = site.ledger.commit(key, BODY)
    with pytest.raises(AttemptKnown):
        if second == "commit":
            site.ledger.commit(key, b"other bytes")
        else:
            site.ledger.lose(key)
    assert site.ledger.update_of(key) == update


def test_a_lost_attempt_can_never_be_committed(site: Site, config: ClientConfig) -> None:
    key = reserved(site, config)
    site.ledger.lose(key)
    with pytest.raises(AttemptKnown):
        site.ledger.commit(key, BODY)
    assert site.ledger.update_of(key) is None
    assert site.ledger.undelivered(config.name) == []


def test_no_outcome_without_a_reservation(site: Site) -> None:
    with pytest.raises(SiteStateError):
        site.ledger.commit(AttemptKey("run-1", 0, 1, "site-a"), BODY)


def test_delivered_bytes_may_go_their_digest_stays(site: Site, config: ClientConfig) -> None:
    key = reserved(site, config)
    update = site.ledger.commit(key, BODY)
    site.ledger.delivered(update.update_id, ACCEPTED)
    site.ledger.delivered(update.update_id, "round-closed")  # the first answer stands
    after = site.ledger.update_of(key)
    assert after is not None
    assert (after.body, after.digest, after.delivery) == (None, update.digest, ACCEPTED)
    assert site.ledger.undelivered(config.name) == []


@pytest.mark.parametrize("table", schema.APPEND_ONLY)
@pytest.mark.parametrize("verb", ["UPDATE", "DELETE", "REPLACE"])
def test_rows_cannot_be_altered_or_removed(
    site: Site, config: ClientConfig, table: str, verb: str
) -> None:
    key = reserved(site, config)
    site.ledger.bind("run-1", config.name, "f")
    site.ledger.delivered(site.ledger.commit(key, BODY).update_id, ACCEPTED)
    site.ledger.mark_restored("yesterday")
    missing = Charge(key._replace(attempt=2), make_order().event, make_order().spec_digest)
    site.ledger.complete(config.population, config.unit, [missing])
    db = site.ledger._db
    column = db.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchone()[0]
    before = db.execute(f"SELECT * FROM {table}").fetchall()
    statement = {
        "UPDATE": f"UPDATE {table} SET {column} = {column}",
        "DELETE": f"DELETE FROM {table}",
        "REPLACE": f"REPLACE INTO {table} SELECT * FROM {table}",
    }[verb]
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(statement)
    assert before
    assert db.execute(f"SELECT * FROM {table}").fetchall() == before


def test_undelivered_bytes_cannot_be_dropped_or_altered(site: Site, config: ClientConfig) -> None:
    site.ledger.commit(reserved(site, config), BODY)
    for statement in ("DELETE FROM payload", "UPDATE payload SET body = x'00'"):
        with pytest.raises(sqlite3.IntegrityError):
            site.ledger._db.execute(statement)


def test_epsilon_is_recomputed_and_counts_lost_and_open(site: Site, config: ClientConfig) -> None:
    event = make_order().event
    assert site.ledger.epsilon(config.population, 1e-5) == 0.0
    site.ledger.commit(reserved(site, config, 1), BODY)
    site.ledger.lose(reserved(site, config, 2))
    reserved(site, config, 3)
    assert site.ledger.epsilon(config.population, 1e-5) == accounting.epsilon([event] * 3, 1e-5)
    assert site.ledger.epsilon("someone else", 1e-5) == 0.0


def test_two_clients_of_one_population_share_the_account(site: Site, config: ClientConfig) -> None:
    spec = make_spec(rounds=0, epsilon=6.0)
    limit = accounting.epsilon(spec.events(), 1e-5) * 1.01  # room for one of them
    for name, passes in (("site-a", True), ("site-b", False)):
        own = config.model_copy(update={"name": name, "max_epsilon": limit})
        order = make_order(spec, client=name)

        def check(rows: list[Entry], o=order, c=own) -> None:  # type: ignore[no-untyped-def]
            judge(o, c, rows)

        if passes:
            site.ledger.reserve(order, own, check)
        else:
            with pytest.raises(PlanRefused):
                site.ledger.reserve(order, own, check)


def test_the_account_is_read_inside_the_reserving_transaction(
    site: Site, config: ClientConfig, state_dir: Path
) -> None:
    """A second process cannot slip a reservation in between check and insert."""
    seen: list[int] = []
    other_done = threading.Event()

    def other() -> None:
        with Site.open(state_dir) as second:
            second.ledger.reserve(
                make_order(attempt=2), config, lambda rows: seen.append(len(rows))
            )
        other_done.set()

    thread = threading.Thread(target=other)

    def check(rows: list[Entry]) -> None:
        seen.append(len(rows))
        thread.start()
        assert not other_done.wait(0.3)

    site.ledger.reserve(make_order(attempt=1), config, check)
    thread.join(10)
    assert seen == [0, 1]


def test_the_data_set_is_bound_to_the_run(site: Site, config: ClientConfig) -> None:
    site.ledger.bind("run-1", config.name, "first")
    site.ledger.bind("run-1", config.name, "first")
    site.ledger.bind("run-2", config.name, "second")
    with pytest.raises(DataChanged) as changed:
        site.ledger.bind("run-1", config.name, "second")
    assert "first" not in str(changed.value)  # a fingerprint is nobody's business


# --- the folder ---


def test_secret_is_made_once_with_mode_0600(state_dir: Path) -> None:
    with Site.open(state_dir) as first:
        key, site_id = first.key("coins/site-a"), first.ledger.site_id
    path = state_dir / SECRET_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert (state_dir / LEDGER_FILE).stat().st_mode & 0o077 == 0
    with Site.open(state_dir) as second:
        assert second.key("coins/site-a") == key
        assert second.key("coins/site-b") != key
        assert len(key) == 32
        assert second.ledger.site_id == site_id
    assert site_id in path.read_text()
    assert not list(state_dir.glob(".site.key*"))


def _no_ledger(folder: Path) -> None:
    for path in folder.glob(f"{LEDGER_FILE}*"):
        path.unlink()


def _no_secret(folder: Path) -> None:
    (folder / SECRET_FILE).unlink()


def _foreign_ledger(folder: Path) -> None:
    _no_ledger(folder)
    with Site.open(folder.parent / "other") as other:
        other_path = other.ledger.path
    other_path.rename(folder / LEDGER_FILE)


def _empty_ledger(folder: Path) -> None:
    _no_ledger(folder)
    (folder / LEDGER_FILE).touch()


def _open_secret(folder: Path) -> None:
    (folder / SECRET_FILE).chmod(0o644)


def _torn_secret(folder: Path) -> None:
    (folder / SECRET_FILE).write_text('{"site_id": "x", "sec')


def _torn_ledger(folder: Path) -> None:
    _no_ledger(folder)
    (folder / LEDGER_FILE).write_bytes(b"not a database, long enough to be read as a header" * 20)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (_no_ledger, LedgerLost),
        (_foreign_ledger, LedgerLost),
        (_no_secret, SecretLost),
        (_empty_ledger, SiteStateError),
        (_open_secret, SiteStateError),
        (_torn_secret, SiteStateError),
        (_torn_ledger, SiteStateError),
    ],
)
def test_a_damaged_folder_is_refused_with_a_way_out(
    state_dir: Path,
    config: ClientConfig,
    damage: Callable[[Path], None],
    error: type[SiteStateError],
) -> None:
    with Site.open(state_dir) as site:
        reserved(site, config)
    damage(state_dir)
    with pytest.raises(error) as refused:
        Site.open(state_dir)
    assert refused.value.mend


@pytest.mark.parametrize("crash", ["before-ledger", "before-secret"])
def test_a_crash_while_the_folder_is_made_is_no_dead_end(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    class CrashError(BaseException):
        pass

    def stop(*_: object, **__: object) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        where = "SiteLedger" if crash == "before-ledger" else "write_secret"
        patch.setattr(f"worker.agent.site.{where}", stop)
        with pytest.raises(CrashError):
            Site.open(state_dir)
    with Site.open(state_dir) as site:
        assert site.ledger.is_unused()


def test_one_process_per_client(state_dir: Path) -> None:
    with Site.open(state_dir) as one, Site.open(state_dir) as two:
        with one.lock("site-a"):
            with pytest.raises(ClientBusy, match=str(os.getpid())), two.lock("site-a"):
                pytest.fail("the lock was given twice")
            with two.lock("site-b"):
                pass
        with two.lock("site-a"):
            pass


def test_the_records_secret_is_not_in_reprs(site: Site, config: ClientConfig) -> None:
    key = reserved(site, config)
    update = site.ledger.commit(key, BODY)
    for value in (site, update, site.ledger.attempt(key)):
        assert "lease-0-1" not in repr(value)
        assert site._secret.hex() not in repr(value)
        assert repr(BODY) not in repr(value)


def test_accounts_of_a_site(site: Site, config: ClientConfig) -> None:
    from worker.agent.report import accounts

    site.ledger.commit(reserved(site, config, 1), BODY)
    site.ledger.lose(reserved(site, config, 2))
    twin = make_config(config.data, name="site-b")
    (account,) = accounts(site, [config, twin])
    event = make_order().event
    assert account["clients"] == ["site-a", "site-b"]
    assert account["epsilon_committed"] == accounting.epsilon([event], 1e-5)
    assert account["epsilon_total"] == accounting.epsilon([event] * 2, 1e-5)
    assert account["attempts"] == {"commit": 1, "lost": 1, "open": 0}
    assert [row["kind"] for row in account["entries"]] == ["reserve", "commit", "reserve", "lost"]
