"""Fixtures on real services: Postgres and Valkey from the embedded wheels (api/embedded.py).

One Postgres server serves all xdist workers: the first to need it starts it, the last to leave
stops it. Alembic builds one template database; every xdist worker copies it once, and every test
that asks for ``database_url`` gets it emptied, as the superuser with triggers off (the ledger
forbids DELETE and TRUNCATE to everybody else).
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import structlog
from filelock import FileLock
from psycopg import sql

from api import embedded

# Two test processes whose libraries take all cores each wait for one another, up to thirty times
# longer than they work. Set before torch and numpy are first used, for child processes, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Shells start what runs in the background with Ctrl-C ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
_TEMPLATE = "fhv_template"
_FOLDER = "FHV_TEST_FOLDER"


def in_database(url: str, name: str) -> str:
    """The same server's URL with another database."""
    head, _, query = url.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")


def migrate(url: str) -> None:
    """Alembic's upgrade to head, in this process, as ``fedhypevae db upgrade`` does it."""
    from alembic import command
    from alembic.config import Config

    config = Config(str(ROOT / "alembic.ini"))
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    before = os.environ.get("FHV_DATABASE_URL")
    os.environ["FHV_DATABASE_URL"] = url
    try:
        command.upgrade(config, "head")
    finally:
        if before is None:
            del os.environ["FHV_DATABASE_URL"]
        else:
            os.environ["FHV_DATABASE_URL"] = before


def _exists(connection: psycopg.Connection, name: str) -> bool:
    row = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
    return row is not None


def _create(connection: psycopg.Connection, name: str, template: str | None = None) -> None:
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} (FORCE)").format(sql.Identifier(name)))
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    if template is not None:
        statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
    connection.execute(statement)


def empty(url: str) -> None:
    """Delete every row that migrations did not write. Needs a superuser."""
    with psycopg.connect(url, autocommit=True) as connection:
        tables = [
            row[0]
            for row in connection.execute(
                "SELECT tablename FROM pg_tables "
                "WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
            )
        ]
        if not tables:
            return
        names = sql.SQL(", ").join(sql.Identifier(name) for name in tables)
        with connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute("SET LOCAL lock_timeout = '20s'")
            connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(names))


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands that run in this process log to the standard error that they find, which a test's
    capture closes. What comes after must not write there.
    """
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def pytest_configure(config: pytest.Config) -> None:
    """One folder for the services of all xdist workers of this run.

    Not below pytest's own: every session that starts on the machine closes that to other users,
    and as root the embedded Postgres runs as another user.
    """
    if not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="fhv-test-")
        os.environ[_FOLDER] = folder  # the workers inherit it
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """A folder that all xdist workers of this run see, removed at its end."""
    return Path(os.environ[_FOLDER])


@pytest.fixture
def service_folder(shared_folder: Path) -> Path:
    """A folder of this test's own with a short path, for services that it starts itself."""
    return Path(tempfile.mkdtemp(dir=shared_folder))


@pytest.fixture
def no_fhv_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the machine that runs the tests must not reach the processes they start."""
    for name in [name for name in os.environ if name.startswith("FHV_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgres_url(shared_folder: Path) -> Iterator[str]:
    """URL of the run's Postgres server, in a database of nobody."""
    with ExitStack() as stack:
        with FileLock(shared_folder / "postgres.lock"):
            url = stack.enter_context(embedded.postgres(shared_folder / "pg", fast=True))
        yield url
        # Leaving is a count in a file of the wheel: one at a time.
        with FileLock(shared_folder / "postgres.lock"):
            stack.close()


@pytest.fixture(scope="session")
def template_database(postgres_url: str, shared_folder: Path) -> str:
    """Name of the database that Alembic built; copy it, never connect to it."""
    with (
        FileLock(shared_folder / "template.lock"),
        psycopg.connect(postgres_url, autocommit=True) as connection,
    ):
        if not _exists(connection, _TEMPLATE):
            building = f"{_TEMPLATE}_building"
            _create(connection, building)
            migrate(in_database(postgres_url, building))
            connection.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                    sql.Identifier(building), sql.Identifier(_TEMPLATE)
                )
            )
    return _TEMPLATE


@pytest.fixture(scope="session")
def worker_database_url(
    postgres_url: str, template_database: str, shared_folder: Path, worker_id: str
) -> Iterator[str]:
    """This xdist worker's own database, built by Alembic. Rows stay between tests: see below."""
    name = f"fhv_{worker_id}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        with FileLock(shared_folder / "template.lock"):
            _create(connection, name, template_database)
        yield in_database(postgres_url, name)
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} (FORCE)").format(sql.Identifier(name))
        )


@pytest.fixture
def database_url(worker_database_url: str) -> str:
    """A migrated, empty database for this test (``postgresql://...``)."""
    empty(worker_database_url)
    return worker_database_url


@pytest.fixture
def bare_database_url(postgres_url: str, worker_id: str) -> Iterator[str]:
    """A database without any schema, dropped afterwards: for tests of migrations."""
    name = f"fhv_bare_{worker_id}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        _create(connection, name)
        yield in_database(postgres_url, name)
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} (FORCE)").format(sql.Identifier(name))
        )


@pytest.fixture(scope="session")
def valkey_url(shared_folder: Path, worker_id: str) -> Iterator[str]:
    """This xdist worker's own Valkey (it starts in a third of a second)."""
    with embedded.valkey(shared_folder / f"valkey-{worker_id}") as url:
        yield url


@pytest.fixture
def broker_url(valkey_url: str) -> Iterator[str]:
    """An empty broker for this test (``redis://...``)."""
    import redis

    client = redis.Redis.from_url(valkey_url)
    client.flushall()
    yield valkey_url
    client.close()
