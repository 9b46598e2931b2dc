"""A dump in the middle of a run, a fresh database, and the run goes on: nothing is spent unseen."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result
from psycopg import sql
from typer.testing import CliRunner

from api import migration
from api.backup import tools
from api.backup.cli import backup_app, restore_app
from api.backup.manifest import MANIFEST_FILE, read
from api.backup.tools import BackupFailed
from api.config import Settings
from tests.conftest import in_database
from tests.worker.real import Federation, federation, issue, served
from worker.agent.site import Site
from worker.agent.verify import Comparison
from worker.client import CoordinatorClient
from worker.config import SiteConfig
from worker.errors import ApiProblem
from worker.execution import Outcome

pytestmark = pytest.mark.slow


@pytest.fixture
def fresh_url(postgres_url: str, worker_id: str) -> Iterator[str]:
    """An empty database beside the one that is backed up."""
    name = f"fhv_restored_{worker_id}"
    named = sql.Identifier(name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        drop = sql.SQL("DROP DATABASE IF EXISTS {} (FORCE)").format(named)
        connection.execute(drop)
        connection.execute(sql.SQL("CREATE DATABASE {}").format(named))
        yield in_database(postgres_url, name)
        connection.execute(drop)


@dataclass
class Operator:
    """``fedhypevae backup`` and ``restore`` with the environment of one coordinator."""

    monkeypatch: pytest.MonkeyPatch

    def call(self, app: Any, settings: Settings, *arguments: str, **changes: str) -> Result:
        values = {
            "DATABASE_URL": settings.database_url.replace("+psycopg", ""),
            "OBJECT_STORE_URL": settings.object_store_url,
            "TOKEN_PEPPER": settings.token_pepper.get_secret_value(),
            **changes,
        }
        for name, value in values.items():
            self.monkeypatch.setenv(f"FHV_{name}", value)
        return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch, no_fhv_environment: None) -> Operator:
    return Operator(monkeypatch)


def settings_of(fed: Federation, url: str) -> Settings:
    store = fed.folder / "restored-objects"
    found = fed.settings.model_dump() | {
        "database_url": url,
        "object_store_url": f"file://{store}",
    }
    return Settings(**found)


def compared(fed: Federation, name: str, site_config: SiteConfig) -> Comparison:
    from worker.agent.reconcile import verify

    with Site.open(site_config.state_dir) as site, fed.client(name) as coordinator:
        config = site_config.require(name)
        return verify(site, coordinator, fed.ids[name], config, site_config)


def until(done: Callable[[], bool], what: str) -> None:
    import time

    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_a_run_goes_on_from_a_dump_and_what_followed_the_dump_is_charged_again(
    database_url: str, fresh_url: str, tmp_path: Path, operator: Operator
) -> None:
    """Dumped after a site had the order and before its update. The site then sends it, and the
    round is published. All that is lost. The site does not send noise twice for one charge: the
    attempt that the restored coordinator asks for again is given back, and the next one is charged
    on both sides.
    """
    copy = tmp_path / "backup"
    with federation(database_url, tmp_path) as fed:
        fed.enrol("site-a", "a/all")
        fed.enrol("site-b", "b/all")
        sites = {"site-a": fed.config("a", "a/all", "site-a"),
                 "site-b": fed.config("b", "b/all", "site-b")}  # fmt: skip
        run = fed.start("run-1", *sites, privacy={"rounds": 1, "sketch_steps": 1})
        fed.finish(sites, 1)  # the frame is published
        until(lambda: fed.operator.run(run)["current_round"] == 1, "no second round")
        made = operator.call(backup_app, fed.settings, str(copy))
        assert made.exit_code == 0, made.output
        assert "1 runs, 2 clients" in made.output
        at_dump = compared(fed, "site-a", sites["site-a"])
        fed.finish(sites, 1)  # and all this the dump does not know
        before = compared(fed, "site-a", sites["site-a"])
        assert before.executed == at_dump.executed + 1
        assert before.discrepancies == ()

    settings = settings_of(fed, fresh_url)
    put = operator.call(restore_app, settings, str(copy))
    assert put.exit_code == 0, put.output
    with (
        served(settings) as url,
        CoordinatorClient(url, issue(settings, "admin")) as admin,
        CoordinatorClient(url, issue(settings, "worker")) as worker,
    ):
        after = replace(
            fed, url=url, settings=settings, database_url=fresh_url, operator=admin, worker=worker
        )
        assert admin.run(run)["current_round"] == 1
        behind = compared(after, "site-a", sites["site-a"])
        kinds = {finding.kind for finding in behind.discrepancies}
        assert kinds == {"missing-commit"}, behind  # reserved there at the dump
        for name, site_config in sites.items():
            assert after.work(name, site_config) is Outcome.GIVEN_BACK
        for name, site_config in sites.items():
            assert after.work(name, site_config) is Outcome.ACCEPTED
        after.aggregate()
        until(lambda: admin.run(run)["state"] == "completed", "the run did not end")
        settled = compared(after, "site-a", sites["site-a"])
        # The site has its receipt and says for ever what became of that update; it is charged.
        assert {finding.kind for finding in settled.discrepancies} == {"missing-commit"}
        assert settled.executed == before.executed + 1
        assert settled.epsilon_here > before.epsilon_here
        assert settled.epsilon_there == pytest.approx(settled.epsilon_here)
        rows = admin.synthesize({"run": run, "mixture": "neutral", "n": 12, "seed": 5})
        assert len(rows["label_ids"]) == 12
        told = after.sql("SELECT kind FROM audit_events WHERE kind LIKE 'database-%%'")
        assert told == [("database-restored",)]


def test_what_was_spent_after_the_dump_is_never_available_again(
    database_url: str, fresh_url: str, tmp_path: Path, operator: Operator
) -> None:
    """A whole run after the dump: the restored coordinator would grant its epsilon a second time,
    the site's ledger refuses.
    """
    copy = tmp_path / "backup"
    plan = {"privacy": {"rounds": 0, "sketch_steps": 1, "epsilon": 4.0}}
    with federation(database_url, tmp_path) as fed:
        fed.enrol("site-a", "a/all")
        site_config = fed.config("a", "a/all", "site-a")
        only = site_config.client[0].model_copy(update={"max_epsilon": 5.0})
        site_config = SiteConfig(site=site_config.site, client=(only,))
        assert operator.call(backup_app, fed.settings, str(copy)).exit_code == 0
        run = fed.start("after-the-dump", "site-a", **plan)
        fed.complete(run, {"site-a": site_config})
        spent = compared(fed, "site-a", site_config).epsilon_here
        assert 3.0 < spent <= 4.0

    settings = settings_of(fed, fresh_url)
    assert operator.call(restore_app, settings, str(copy)).exit_code == 0
    with (
        served(settings) as url,
        CoordinatorClient(url, issue(settings, "admin")) as admin,
        CoordinatorClient(url, issue(settings, "worker")) as worker,
    ):
        after = replace(
            fed, url=url, settings=settings, database_url=fresh_url, operator=admin, worker=worker
        )
        behind = compared(after, "site-a", site_config)
        assert "unknown-there" in {finding.kind for finding in behind.discrepancies}
        assert admin.client_ledger(fed.ids["site-a"])["epsilon_total"] == 0
        after.start("once-more", "site-a", **plan)  # the coordinator sees nothing against it
        assert after.work("site-a", site_config) is Outcome.PLAN_REFUSED
        assert compared(after, "site-a", site_config).epsilon_here == pytest.approx(spent)


def test_a_backup_is_private_whole_and_checked(
    database_url: str, fresh_url: str, tmp_path: Path, operator: Operator
) -> None:
    copy = tmp_path / "backup"
    with federation(database_url, tmp_path) as fed:
        fed.enrol("site-a", "a/all")
        sites = {"site-a": fed.config("a", "a/all", "site-a")}
        run = fed.start("run-1", "site-a", privacy={"rounds": 0})
        fed.complete(run, sites)
        assert operator.call(backup_app, fed.settings, str(copy)).exit_code == 0
        again = operator.call(backup_app, fed.settings, str(copy))
        assert (again.exit_code, "never replaces another one" in again.output) == (1, True)
        full = operator.call(restore_app, fed.settings, str(copy))
        assert (full.exit_code, "a restore never replaces" in full.output) == (1, True)
        bare = tmp_path / "bare"
        assert operator.call(backup_app, fed.settings, str(bare), "--no-objects").exit_code == 0
        assert read(bare).objects is None
        some = next((tmp_path / "objects" / "sha256").glob("??/*"))
        some.rename(tmp_path / "aside")
        lost = operator.call(backup_app, fed.settings, str(tmp_path / "second"))
        assert (lost.exit_code, "objects that the database names" in lost.output) == (1, True)
        assert not (tmp_path / "second").exists()
        assert not list(tmp_path.glob(".second*"))

    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert stat.S_IMODE((copy / MANIFEST_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE((copy / "database.dump").stat().st_mode) == 0o600
    assert fed.settings.token_pepper.get_secret_value() not in (copy / MANIFEST_FILE).read_text()

    settings = settings_of(fed, fresh_url)

    def refused(words: str, folder: Path = copy, **changes: str) -> None:
        done = operator.call(restore_app, settings, str(folder), **changes)
        assert (done.exit_code, words in done.output) == (1, True), done.output
        assert migration.state(settings.database_url).found is None

    refused("is not the one that the backup was made with", TOKEN_PEPPER="another pepper, of now")
    refused("No such file", tmp_path / "nothing")

    def damaged(change: Callable[[Path], object]) -> Path:
        other = tmp_path / "damaged"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(copy, other)
        change(other)
        return other

    dump = (copy / "database.dump").read_bytes()
    refused("cut short", damaged(lambda at: (at / "database.dump").write_bytes(dump[:-1])))
    flipped = dump[:-1] + bytes([dump[-1] ^ 1])
    refused("not the one that was", damaged(lambda at: (at / "database.dump").write_bytes(flipped)))
    manifest = json.loads((copy / MANIFEST_FILE).read_text())

    def rewrite(at: Path) -> None:
        (at / MANIFEST_FILE).write_text(json.dumps(manifest | {"migration": "9999"}))

    refused("of a newer program", damaged(rewrite))
    refused("damaged", damaged(lambda at: (at / MANIFEST_FILE).write_text("{}")))

    def object_of(at: Path) -> Path:
        return next((at / "objects" / "sha256").glob("??/*"))

    refused("is not what was written", damaged(lambda at: object_of(at).write_bytes(b"x")))
    refused("its manifest.json says", damaged(lambda at: object_of(at).unlink()))
    assert operator.call(restore_app, settings, str(copy)).exit_code == 0
    assert migration.state(settings.database_url).current


def test_a_token_revoked_after_the_dump_is_named_by_the_command(
    database_url: str, fresh_url: str, tmp_path: Path, operator: Operator
) -> None:
    """It is valid again. Nobody could know better; the command says that it must be repeated."""
    with federation(database_url, tmp_path) as fed:
        token = issue(fed.settings, "auditor")
        assert operator.call(backup_app, fed.settings, str(tmp_path / "backup")).exit_code == 0
        fed.sql("UPDATE tokens SET revoked_at = clock_timestamp() WHERE scope = 'auditor'")
        with CoordinatorClient(fed.url, token) as auditor, pytest.raises(ApiProblem):
            auditor.run("run-1")
    settings = settings_of(fed, fresh_url)
    done = operator.call(restore_app, settings, str(tmp_path / "backup"))
    assert "what was revoked or erased since then" in done.output


def test_no_secret_is_an_argument_and_a_tool_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tools.environment(
        "postgresql+psycopg://fhv:hunter%402@db.example:5433/fhv?sslmode=verify-full"
    )
    named = {key: value for key, value in found.items() if key.startswith("PG")}
    assert named == {
        "PGUSER": "fhv", "PGPASSWORD": "hunter@2", "PGHOST": "db.example", "PGPORT": "5433",
        "PGDATABASE": "fhv", "PGSSLMODE": "verify-full",
    }  # fmt: skip
    with pytest.raises(BackupFailed, match="keepalives"):
        tools.environment("postgresql://fhv@db/fhv?keepalives=1")
    with pytest.raises(BackupFailed, match=r"no pg_dump of version 99 or newer .*\(18\)"):
        tools.find("pg_dump", 99)
    monkeypatch.setattr("api.backup.tools.shutil.which", lambda _: None)
    assert "pginstall" in str(tools.find("pg_restore", 18))
