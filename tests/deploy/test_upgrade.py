"""From one release to the next and back: with data, and with the older program still at work."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic.config import Config
from typer.testing import CliRunner

from api import migration
from api.backup.cli import restore_app
from api.cli import db_app, serve_app
from api.config import Settings
from api.embedded import free_port
from tests.api.test_coordinator_process import environment
from tests.api.test_coordinator_process import served as process_of
from tests.conftest import ROOT
from tests.worker.real import Federation, federation, issue, served
from worker.client import CoordinatorClient

pytestmark = pytest.mark.slow

# Made by 'fedhypevae backup' of the program whose newest migration was 0006, with two sites, a
# completed run "first" and a second run under way.
RELEASE = Path(__file__).with_name("release_0006")
PEPPER = "a pepper for tests only"
ROWS = "5f9129a9506a7c238a39bd08a90130b22eddf1a469096dd7c163c65fae80f830"
EPSILON = 3.9999928069274095

WIDER = '''"""As a later release could: a column that may be empty, a table of its own."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None
expands = {expands}


def upgrade() -> None:
    op.add_column("clients", sa.Column("contact", sa.String(200), nullable=True))
    op.add_column("runs", sa.Column("weight", sa.Integer(), server_default="1", nullable=False))
    op.create_table("later", sa.Column("id", sa.Uuid(), primary_key=True))


def downgrade() -> None:
    op.drop_table("later")
    op.drop_column("runs", "weight")
    op.drop_column("clients", "contact")
'''


def test_the_data_of_an_older_release_come_along(
    bare_database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_fhv_environment: None,
) -> None:
    settings = Settings(
        env="prod",
        token_pepper=PEPPER,
        database_url=bare_database_url,
        object_store_url=f"file://{tmp_path}/objects",
        database_pool=4,
    )
    for name, value in {
        "FHV_DATABASE_URL": bare_database_url,
        "FHV_OBJECT_STORE_URL": settings.object_store_url,
        "FHV_TOKEN_PEPPER": PEPPER,
    }.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(restore_app, [str(RELEASE)])
    assert done.exit_code == 0, done.output
    assert migration.state(settings.database_url).current
    with (
        served(settings) as url,
        CoordinatorClient(url, issue(settings, "admin")) as admin,
        CoordinatorClient(url, issue(settings, "worker")) as worker,
    ):
        runs = {run["name"]: run for run in admin.runs()["items"]}
        assert runs["first"]["state"] == "completed"
        rows = admin.synthesize(
            {"run": runs["first"]["id"], "mixture": "neutral", "n": 12, "seed": 5}
        )
        content = json.dumps([rows["embeddings"], rows["label_ids"]])
        assert hashlib.sha256(content.encode()).hexdigest() == ROWS
        clients = {each["name"]: each["id"] for each in admin.clients()["items"]}
        ledger = admin.client_ledger(clients["site-a"])
        assert ledger["epsilon_committed"] == pytest.approx(EPSILON)
        admin.cancel_run(runs["second"]["id"])
        fed = Federation(url, settings, bare_database_url, tmp_path, admin, worker)
        fed.enrol("site-c", "c/all")
        sites = {"site-c": fed.config("c", "c/all", "site-c")}
        fed.complete(fed.start("third", "site-c", privacy={"rounds": 0}), sites)

    back = CliRunner().invoke(db_app, ["downgrade", "0004"])
    assert back.exit_code == 1
    assert "cannot go back" in back.output
    assert migration.state(settings.database_url).current


@contextmanager
def later_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expands: bool) -> Iterator[str]:
    """Migrations as a later program has them; the name of our own newest one."""
    root = tmp_path / "later"
    head = migration.newest()
    shutil.copytree(ROOT / "migrations", root / "migrations")
    shutil.copy(ROOT / "alembic.ini", root)
    text = WIDER.format(head=head, expands=expands)
    (root / "migrations/versions/9999_wider.py").write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(migration, "_ROOT", root)
        yield head


def test_this_program_goes_on_while_and_after_a_later_one_widens_the_database(
    bare_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rolling upgrade: migrate first, with this program at work, then change the programs. And
    back again: this program starts on the wider database, and its own 'db upgrade' changes nothing.
    """
    migration.upgrade(bare_database_url.replace("postgresql:", "postgresql+psycopg:"))
    with federation(bare_database_url, tmp_path) as fed:
        fed.enrol("site-a", "a/all")
        sites = {"site-a": fed.config("a", "a/all", "site-a")}
        run = fed.start("run-1", "site-a", privacy={"rounds": 1, "sketch_steps": 1})
        fed.finish(sites, 1)
        url = fed.settings.database_url
        with later_release(tmp_path, monkeypatch, expands=True) as head:
            migration.upgrade(url)
            assert migration.state(url).found == "9999"
        # Where a step of the run was in the migration's way and had to give in, the run rests: for
        # seconds, not for minutes.
        until(lambda: fed.sql("SELECT 1 FROM work_items WHERE state = 'ready'") != [])
        fed.complete(run, sites)
        fed.enrol("site-b", "b/all")
        fed.operator.synthesize({"run": run, "mixture": "neutral", "n": 3, "seed": 5})

    state = migration.state(url)
    assert (state.current, state.newer, state.usable) == (False, True, True)
    env = environment(bare_database_url, tmp_path / "objects")
    with process_of(env, free_port()):
        pass  # it is ready
    monkeypatch.setenv("FHV_DATABASE_URL", bare_database_url)
    upgraded = CliRunner().invoke(db_app, ["upgrade"])
    assert upgraded.exit_code == 0
    assert f"of a newer program; this one ({head}) can serve it" in upgraded.output
    assert CliRunner().invoke(db_app, ["current"]).exit_code == 0
    assert migration.state(url).found == "9999"


def test_a_migration_waits_for_a_program_that_is_in_its_way(
    bare_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody reads both tables, in the other order, until the migration waits for it: each waits
    for the other, and Postgres ends one of them. The migration is applied all the same.
    """
    url = bare_database_url.replace("postgresql:", "postgresql+psycopg:")
    migration.upgrade(url)
    ended: list[str | None] = []

    def read_the_other_way() -> None:
        with psycopg.connect(bare_database_url) as connection:
            connection.execute("SET deadlock_timeout = '10s'")  # the migration looks first
            connection.execute("SELECT 1 FROM runs")
            ready.set()
            until_somebody_waits(bare_database_url)
            try:
                connection.execute("SELECT 1 FROM clients")
                ended.append(None)
            except psycopg.Error as error:
                ended.append(error.sqlstate)

    ready = threading.Event()
    reader = threading.Thread(target=read_the_other_way)
    reader.start()
    assert ready.wait(20)
    calls: list[str] = []
    upgrade = migration.command.upgrade
    with later_release(tmp_path, monkeypatch, expands=True), monkeypatch.context() as patch:

        def counted(config: Config, revision: str) -> None:
            calls.append(revision)
            upgrade(config, revision)

        patch.setattr(migration.command, "upgrade", counted)
        migration.upgrade(url)
        assert migration.state(url).found == "9999"
    reader.join(20)
    assert ended == [None]
    assert len(calls) == 2


def until(done: Callable[[], bool], seconds: float = 25.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.05)


def until_somebody_waits(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(400):
            row = connection.execute(
                "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
                "WHERE d.datname = current_database() AND NOT l.granted"
            ).fetchone()
            if row is not None and row[0]:
                return
            time.sleep(0.05)
    raise AssertionError("nobody waited")


def test_a_database_that_was_narrowed_is_left_alone(
    bare_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bare_database_url.replace("postgresql:", "postgresql+psycopg:")
    with later_release(tmp_path, monkeypatch, expands=False) as head:
        migration.upgrade(url)
        assert migration.oldest_program("9999") == "9999"
    for name, value in environment(bare_database_url, tmp_path).items():
        monkeypatch.setenv(name, value)
    for app, arguments, words in (
        (serve_app, ["--port", str(free_port())], f"needs {head}: run the newer program."),
        (db_app, ["upgrade"], "of a newer program"),
        (db_app, ["current"], f"at 9999, newest {head}"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert (done.exit_code, len(done.output.splitlines())) == (1, 1), done.output
        assert words in done.output
    assert not migration.state(url).usable


def test_every_migration_says_whether_older_programs_can_stay() -> None:
    """True, False, or silence, which is False; and ours leads to a program that exists."""
    for script in migration._scripts().walk_revisions():
        assert getattr(script.module, "expands", False) in (True, False)
    assert migration.oldest_program(migration.newest()) in migration.known()
