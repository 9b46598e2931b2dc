"""Backups of a site's ledger: consistent, checked, and never a way to forget what was spent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.support import Killed, Script, make_config, make_order, make_spec
from worker.agent import backup, schema
from worker.agent.backup import MANIFEST_FILE
from worker.agent.records import AttemptKey
from worker.agent.restoration import Charge
from worker.agent.site import LEDGER_FILE, SECRET_FILE, Site
from worker.config import ClientConfig
from worker.errors import BackupError, LedgerLost, NotReconciled, SiteStateError
from worker.execution import Outcome, perform, recover

BODY = b"noised bytes"


def reserved(site: Site, config: ClientConfig, attempt: int = 1) -> AttemptKey:
    order = make_order(attempt=attempt)
    site.ledger.reserve(order, config, lambda _: None)
    return AttemptKey.of(order)


def used(state_dir: Path, config: ClientConfig) -> None:
    with Site.open(state_dir) as site:
        site.ledger.commit(reserved(site, config, 1), BODY)
        site.ledger.lose(reserved(site, config, 2))
        reserved(site, config, 3)


def lose_ledger(state_dir: Path) -> None:
    for path in state_dir.glob(f"{LEDGER_FILE}*"):
        path.unlink()


@pytest.fixture
def copy(state_dir: Path, config: ClientConfig, tmp_path: Path) -> Path:
    """A backup of a site that has committed, lost and left open one attempt each."""
    used(state_dir, config)
    backup.make(state_dir, tmp_path / "copy")
    return tmp_path / "copy"


# --- making one ---


def test_a_backup_is_private_complete_and_reads_back(copy: Path, state_dir: Path) -> None:
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    names = {path.name for path in copy.iterdir()}
    assert names == {LEDGER_FILE, SECRET_FILE, MANIFEST_FILE}  # no log beside the ledger
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in copy.iterdir())
    manifest = backup.read(copy)
    with Site.open(state_dir) as site:
        assert manifest.site_id == site.ledger.site_id
        assert manifest.entries == len(site.ledger.entries())
    assert (copy / SECRET_FILE).read_bytes() == (state_dir / SECRET_FILE).read_bytes()
    assert not list(copy.parent.glob(".copy.*"))


def test_reading_a_backup_changes_no_byte_of_it(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    backup.read(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_backups_during_writes_are_consistent(
    state_dir: Path, config: ClientConfig, tmp_path: Path
) -> None:
    """Every copy is a moment of the ledger: outcomes with their reservations, all rows in order."""
    Site.open(state_dir).close()
    stop, failures, written = threading.Event(), [], []

    def write() -> None:
        try:
            with Site.open(state_dir) as site:
                attempt = 0
                while not stop.is_set():
                    attempt += 1
                    key = reserved(site, config, attempt)
                    site.ledger.commit(key, BODY * 500)
                    written.append(attempt)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=write)
    thread.start()
    try:
        counts = []
        for number in range(8):
            turn = len(written)
            while number and len(written) == turn and thread.is_alive():
                time.sleep(0.001)  # something is written between any two copies
            before = len(written)
            manifest = backup.make(state_dir, tmp_path / f"copy-{number}")
            counts.append(manifest.entries)
            assert manifest.entries >= 2 * before  # nothing that was committed before is missing
    finally:
        stop.set()
        thread.join(30)
    assert not failures
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    for number, entries in enumerate(counts):
        db = sqlite3.connect(tmp_path / f"copy-{number}" / LEDGER_FILE)
        kinds = [row[0] for row in db.execute("SELECT kind FROM entry ORDER BY seq")]
        stored = db.execute("SELECT count(*) FROM stored JOIN payload USING (update_id)").fetchone()
        db.close()
        assert kinds == (["reserve", "commit"] * len(kinds))[: len(kinds)]
        assert len(kinds) == entries
        assert stored == (kinds.count("commit"),)


@pytest.mark.parametrize("where", ["itself", "taken", "nowhere", "file"])
def test_a_backup_replaces_nothing(state_dir: Path, config: ClientConfig, where: str) -> None:
    used(state_dir, config)
    parent = state_dir.parent
    (parent / "taken").mkdir()
    (parent / "file").write_text("mine")
    target = {
        "itself": state_dir / "copy",
        "taken": parent / "taken",
        "nowhere": parent / "no" / "such" / "place",
        "file": parent / "file",
    }[where]
    with pytest.raises(BackupError) as refused:
        backup.make(state_dir, target)
    assert refused.value.mend
    assert (parent / "file").read_text() == "mine"
    assert not list((parent / "taken").iterdir())
    assert not list(parent.rglob(".copy*"))


def test_a_backup_that_does_not_read_back_is_not_there(
    state_dir: Path, config: ClientConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(state_dir, config)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "put_private", full)
    with pytest.raises(BackupError, match="No space left"):
        backup.make(state_dir, tmp_path / "copy")
    assert not [path for path in tmp_path.iterdir() if "copy" in path.name]


# --- what is no backup ---


def _rewrite_manifest(copy: Path, **changes: object) -> None:
    path = copy / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _describe(copy: Path) -> None:
    """A manifest that fits the altered files: damage that digests do not show."""
    names = (LEDGER_FILE, SECRET_FILE)
    _rewrite_manifest(copy, files={name: _digest(copy / name) for name in names})


def _truncated(copy: Path) -> None:
    os.truncate(copy / LEDGER_FILE, (copy / LEDGER_FILE).stat().st_size - 4096)


def _truncated_and_described(copy: Path) -> None:
    _truncated(copy)
    _describe(copy)


def _one_byte(copy: Path) -> None:
    body = bytearray((copy / LEDGER_FILE).read_bytes())
    body[len(body) // 2] ^= 1
    (copy / LEDGER_FILE).write_bytes(body)


def _row_removed(copy: Path) -> None:
    db = sqlite3.connect(copy / LEDGER_FILE, isolation_level=None)
    db.execute("DROP TRIGGER entry_no_delete")
    db.execute("DELETE FROM entry WHERE seq = 5")
    db.close()
    _describe(copy)


def _no_manifest(copy: Path) -> None:
    (copy / MANIFEST_FILE).unlink()


def _torn_manifest(copy: Path) -> None:
    os.truncate(copy / MANIFEST_FILE, 20)


def _no_secret(copy: Path) -> None:
    (copy / SECRET_FILE).unlink()


def _other_secret(copy: Path) -> None:
    value = json.loads((copy / SECRET_FILE).read_text())
    (copy / SECRET_FILE).write_text(json.dumps({**value, "site_id": "another"}))
    _describe(copy)


def _empty_ledger(copy: Path) -> None:
    (copy / LEDGER_FILE).write_bytes(b"")
    _describe(copy)


def _newer(copy: Path) -> None:
    db = sqlite3.connect(copy / LEDGER_FILE)
    db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    db.close()
    _describe(copy)


def _gone(copy: Path) -> None:
    shutil.rmtree(copy)


@pytest.mark.parametrize(
    "damage",
    [
        _truncated, _truncated_and_described, _one_byte, _row_removed, _no_manifest,
        _torn_manifest, _no_secret, _other_secret, _empty_ledger, _newer, _gone,
    ],
)  # fmt: skip
def test_a_damaged_backup_is_refused_and_nothing_is_put_in_place(
    copy: Path, state_dir: Path, damage: Callable[[Path], None]
) -> None:
    lose_ledger(state_dir)
    damage(copy)
    before = sorted(path.name for path in state_dir.iterdir())
    with pytest.raises(SiteStateError) as refused:
        backup.restore(copy, state_dir)
    assert refused.value.mend
    assert sorted(path.name for path in state_dir.iterdir()) == before
    with pytest.raises(LedgerLost):
        Site.open(state_dir)


# --- putting one back ---


def test_a_backup_never_replaces_a_ledger(
    copy: Path, state_dir: Path, config: ClientConfig
) -> None:
    with Site.open(state_dir) as site:
        reserved(site, config, 4)
        before = site.ledger.entries()
    with pytest.raises(BackupError, match="there is a ledger"):
        backup.restore(copy, state_dir)
    with Site.open(state_dir) as site:
        assert site.ledger.entries() == before


def test_a_backup_of_another_site_is_refused(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    Site.open(other).close()
    lose_ledger(other)
    with pytest.raises(BackupError, match="is not the secret"):
        backup.restore(copy, other)
    assert not (other / LEDGER_FILE).exists()


@pytest.mark.parametrize("gone", ["ledger", "everything"])
def test_a_restored_ledger_is_the_backup_and_spends_nothing(
    copy: Path, state_dir: Path, config: ClientConfig, gone: str
) -> None:
    with Site.open(state_dir) as site:
        before, key = site.ledger.entries(), site.key("coins/site-a")
        reserved(site, config, 4)  # after the backup
    if gone == "ledger":
        lose_ledger(state_dir)
        with pytest.raises(LedgerLost):
            Site.open(state_dir)
    else:
        shutil.rmtree(state_dir)
    backup.restore(copy, state_dir)
    assert not list(state_dir.glob(f".{LEDGER_FILE}*"))
    assert stat.S_IMODE((state_dir / LEDGER_FILE).stat().st_mode) == 0o600
    with Site.open(state_dir) as site:
        assert site.ledger.entries() == before
        assert site.key("coins/site-a") == key
        with pytest.raises(NotReconciled) as refused:
            reserved(site, config, 5)
        assert "reconcile" in str(refused.value)
        other = make_config(config.data, name="site-z", population="another")
        with pytest.raises(NotReconciled):  # nor any population that the backup does not know
            site.ledger.reserve(make_order(client="site-z"), other, lambda _: None)
        assert site.ledger.entries() == before


def test_the_schema_itself_refuses_to_spend_from_a_restored_ledger(
    copy: Path, state_dir: Path
) -> None:
    """Whatever software opens it: the check in Python is not the only one."""
    lose_ledger(state_dir)
    backup.restore(copy, state_dir)
    with Site.open(state_dir) as site:
        db = site.ledger._db
        for kind, attempt in (("reserve", 9), ("commit", 3)):  # attempt 3 is open in the backup
            with pytest.raises(sqlite3.IntegrityError, match="was not completed"):
                db.execute(
                    "INSERT INTO entry (kind, population, unit, run_id, round, attempt, client,"
                    " event, spec_digest, at) SELECT ?, population, unit, run_id, round, ?, client,"
                    " event, spec_digest, at FROM entry WHERE kind = 'reserve' AND attempt = 3",
                    (kind, attempt),
                )


def test_an_agent_and_a_worker_stop_before_a_restored_ledger(
    copy: Path, state_dir: Path, config: ClientConfig
) -> None:
    """Neither recovery nor an order goes on; the order is given back without touching records."""
    lose_ledger(state_dir)
    backup.restore(copy, state_dir)
    order = make_order(attempt=5)
    script = Script(orders=[order])
    with Site.open(state_dir) as site:
        place = script.place(site)
        with pytest.raises(NotReconciled):
            recover(config, place)
        with pytest.raises(NotReconciled):
            perform(order, config, place)
        assert site.ledger.attempt(AttemptKey.of(order)) is None
    assert script.failures == [(order.work_id, "site-not-ready")]
    assert script.puts == []


def test_the_log_of_a_lost_ledger_is_not_replayed_into_the_restored_one(
    copy: Path, state_dir: Path, config: ClientConfig
) -> None:
    with Site.open(state_dir) as site:
        reserved(site, config, 4)
        log = (state_dir / f"{LEDGER_FILE}-wal").read_bytes()  # as a crash would leave it
        before = backup.read(copy).entries
    assert log
    lose_ledger(state_dir)
    (state_dir / f"{LEDGER_FILE}-wal").write_bytes(log)
    backup.restore(copy, state_dir)
    with Site.open(state_dir) as site:
        assert len(site.ledger.entries()) == before
    assert not list(state_dir.glob("*orphan*")), "it may hold secrets of sums"


@pytest.mark.parametrize("killed", ["before the ledger is there", "after it"])
def test_the_log_of_a_lost_ledger_goes_when_the_restored_one_is_there(
    copy: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """Killed in between, it is put aside still: whoever opens the folder next removes it."""
    log = b"secrets of a sum, as kill -9 leaves them"
    lose_ledger(state_dir)
    (state_dir / f"{LEDGER_FILE}-wal").write_bytes(log)

    def die(*_: object) -> None:
        raise Killed

    before = killed == "before the ledger is there"
    with monkeypatch.context() as patch:
        patch.setattr(backup.os, "link", die) if before else patch.setattr(
            backup, "remove_orphans", die
        )
        with pytest.raises(Killed):
            backup.restore(copy, state_dir)
    (aside,) = state_dir.glob(f"{LEDGER_FILE}-wal.orphan-*")
    assert aside.read_bytes() == log
    if before:
        with pytest.raises(LedgerLost):
            Site.open(state_dir)
        assert aside.exists(), "nothing is taken away while nothing is there in its place"
        backup.restore(copy, state_dir)
    else:
        Site.open(state_dir).close()
    assert not [path for path in state_dir.iterdir() if path.is_file() and log in path.read_bytes()]


def test_a_crash_while_restoring_is_no_dead_end(
    copy: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CrashError(BaseException):
        pass

    def stop(*_: object, **__: object) -> None:
        raise CrashError

    shutil.rmtree(state_dir)
    with monkeypatch.context() as patch:
        patch.setattr("worker.agent.backup.os.link", stop)
        with pytest.raises(CrashError):
            backup.restore(copy, state_dir)
    assert not (state_dir / LEDGER_FILE).exists()
    if (state_dir / SECRET_FILE).exists():
        with pytest.raises(LedgerLost):
            Site.open(state_dir)
    backup.restore(copy, state_dir)
    with Site.open(state_dir) as site:
        assert site.ledger.unreconciled("a/all")


def test_a_backup_of_an_older_schema_is_carried_over(
    tmp_path: Path, state_dir: Path, copy: Path
) -> None:
    db = sqlite3.connect(copy / LEDGER_FILE, isolation_level=None)
    db.execute("DROP TRIGGER nothing_is_spent_before_reconciliation")
    for table in ("restored", "reconciliation", "restoration", "consent", "sum_state"):
        db.execute(f"DROP TABLE {table}")
    db.execute("PRAGMA user_version = 2")
    db.close()
    _describe(copy)
    lose_ledger(state_dir)
    backup.restore(copy, state_dir)
    with Site.open(state_dir) as site:
        assert site.ledger.unreconciled("a/all")
        assert [e.kind for e in site.ledger.entries()][:2] == ["reserve", "commit"]


# --- completing it ---


def test_completing_charges_what_is_missing_once_and_lets_the_population_spend(
    copy: Path, state_dir: Path, config: ClientConfig
) -> None:
    lose_ledger(state_dir)
    backup.restore(copy, state_dir)
    order = make_order(attempt=4)
    missing = [
        Charge(AttemptKey.of(make_order(attempt=number)), order.event, order.spec_digest)
        for number in (3, 4)  # 3 is open in the backup, 4 not in it
    ]
    with Site.open(state_dir) as site:
        assert site.ledger.complete(config.population, config.unit, missing) == 2
        assert site.ledger.complete(config.population, config.unit, missing) == 0
        states = {a.key.attempt: (a.standing, a.restored) for a in site.ledger.standings("a/all")}
        assert states == {
            1: ("commit", False), 2: ("lost", False), 3: ("lost", True), 4: ("lost", True),
        }  # fmt: skip
        assert site.ledger.unfinished(config.name) == []
        assert not site.ledger.unreconciled("a/all")
        assert site.ledger.unreconciled("another")
        # An attempt that was charged from the coordinator's ledger is never executed.
        script = Script(orders=[order])
        assert perform(order, config, script.place(site)) is Outcome.GIVEN_BACK
        assert script.puts == []
        reserved(site, config, 5)


def test_a_second_restore_needs_a_second_completion(
    copy: Path, state_dir: Path, config: ClientConfig, tmp_path: Path
) -> None:
    lose_ledger(state_dir)
    backup.restore(copy, state_dir)
    with Site.open(state_dir) as site:
        site.ledger.complete(config.population, config.unit, [])
    backup.make(state_dir, tmp_path / "second")
    lose_ledger(state_dir)
    backup.restore(tmp_path / "second", state_dir)
    with Site.open(state_dir) as site:
        with pytest.raises(NotReconciled):
            reserved(site, config, 5)
        site.ledger.complete(config.population, config.unit, [])
        reserved(site, config, 5)


def test_a_changed_spec_of_a_run_known_from_the_coordinator_is_refused(
    copy: Path, state_dir: Path, config: ClientConfig
) -> None:
    """The digest that came with the completion binds the run like one that was written here."""
    from core.errors import PlanRefused
    from worker.agent.policy import judge

    lose_ledger(state_dir)
    backup.restore(copy, state_dir)
    later = make_order(make_spec(run_id="run-2"))
    with Site.open(state_dir) as site:
        charge = Charge(AttemptKey.of(later), later.event, "sha256:" + "9" * 64)
        site.ledger.complete(config.population, config.unit, [charge])
        again = make_order(make_spec(run_id="run-2"), attempt=2)
        with pytest.raises(PlanRefused) as refused:
            judge(again, config, site.ledger.entries("a/all"))
        assert refused.value.field == "spec"
