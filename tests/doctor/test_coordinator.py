"""A coordinator's machine, broken in one way after the other, with real servers."""

from __future__ import annotations

import collections
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from api import checks, migration
from tests.conftest import in_database
from tests.doctor.conftest import Doctor, Setting

PEPPER = "sixteen random characters"


@pytest.fixture
def coordinator(
    doctor: Doctor, setting: Setting, database_url: str, broker_url: str, tmp_path: Path
) -> Doctor:
    """Everything is as it should be, and the test breaks one thing."""
    setting(
        database_url=database_url,
        broker_url=broker_url,
        token_pepper=PEPPER,
        object_store_url=f"file://{tmp_path}/store",
    )
    doctor.names |= {
        database_url.partition("host=")[2]: "/run/postgresql",
        migration.state(checks.database_url()).head: "NEWEST",
    }
    return doctor


def test_all_is_well(coordinator: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _space(monkeypatch, 100 << 30)
    found = coordinator.findings("--coordinator")
    parts = {each["name"]: each for each in found if each["part"] == "coordinator"}
    assert set(parts) == {
        "settings", "database", "migration", "broker", "object store", "space in store",
    }  # fmt: skip
    assert {each["level"] for each in parts.values()} == {"ok"}, parts
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert left == [], "what was written to try the store is deleted"


def test_settings(coordinator: Doctor, setting: Setting) -> None:
    setting(database_pool="1", port="99999")
    coordinator.sees("coordinator", "Unusable settings", "fail settings", "fail settings")
    setting(token_pepper="short", database_pool=None, port=None)
    coordinator.sees("coordinator", "A pepper that can be guessed", "fail settings")
    setting(token_pepper=PEPPER, env="dev")
    coordinator.sees("coordinator", "FHV_ENV=dev", "warn settings")


def test_nothing_is_set(doctor: Doctor) -> None:
    found = doctor.sees(
        "coordinator", "Nothing is set", "fail settings", "fail settings", "warn broker"
    )
    assert any("FHV_DATABASE_URL" in each["message"] for each in found)
    assert any("FHV_OBJECT_STORE_URL" in each["message"] for each in found)


@pytest.fixture
def guarded(postgres_url: str, worker_id: str) -> Iterator[str]:
    """A user for whom this server wants a password, as servers elsewhere do for all."""
    name = f"fhv_locked_{worker_id}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP ROLE IF EXISTS {name}")
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'right'")
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        before = rules.read_text()
        try:
            rules.write_text(f"local all {name} scram-sha-256\n{before}")
            connection.execute("SELECT pg_reload_conf()")
            yield name
        finally:
            rules.write_text(before)
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(f"DROP ROLE {name}")


def test_a_wrong_password(
    coordinator: Doctor, setting: Setting, database_url: str, guarded: str
) -> None:
    setting(database_url=database_url.replace("postgres:", f"{guarded}:wrong", 1))
    (found,) = coordinator.sees("coordinator", "A wrong password", "fail database")
    assert "wrong" not in found["message"] + found["mend"], "the password is not repeated"


def test_no_such_database_and_no_server(
    coordinator: Doctor, setting: Setting, database_url: str, tmp_path: Path
) -> None:
    setting(database_url=in_database(database_url, "fhv_nowhere"))
    coordinator.sees("coordinator", "No such database", "fail database")
    setting(database_url="postgresql://fhv:secret@127.0.0.1:9/fhv")
    (found,) = coordinator.sees("coordinator", "No database server", "fail database")
    assert "secret" not in str(found)


def test_migrations(coordinator: Doctor, setting: Setting, bare_database_url: str) -> None:
    setting(database_url=bare_database_url)
    coordinator.sees("coordinator", "A new database", "fail migration")
    with psycopg.connect(bare_database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('0001')")
    coordinator.sees("coordinator", "A database of older software", "fail migration")
    with psycopg.connect(bare_database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    coordinator.sees("coordinator", "A database of newer software", "fail migration")
    with psycopg.connect(bare_database_url, autocommit=True) as connection:
        said = "fedhypevae serves it from migration 0001"
        connection.execute(f"COMMENT ON TABLE alembic_version IS '{said}'")
    case = "A database of newer software, which this program can serve"
    coordinator.sees("coordinator", case, "warn migration")


def test_settings_from_files(coordinator: Doctor, setting: Setting, tmp_path: Path) -> None:
    broker = tmp_path / "broker"
    setting(broker_url=None, broker_url_file=broker)
    coordinator.sees(
        "coordinator", "A setting's file that is not there", "fail settings", "warn broker"
    )
    broker.write_text("redis://127.0.0.1:9/0\n")
    found = {each["name"]: each for each in coordinator.findings("--coordinator")}
    assert (found["settings"]["level"], found["broker"]["level"]) == ("ok", "fail")


def test_brokers(coordinator: Doctor, setting: Setting, broker_url: str) -> None:
    setting(broker_url="redis://127.0.0.1:9/0")
    coordinator.sees("coordinator", "A broker that is away", "fail broker")
    server = redis.Redis.from_url(broker_url)
    server.config_set("requirepass", "right")
    try:
        setting(broker_url=broker_url.replace("redis://", "redis://:wrong@", 1))
        coordinator.sees("coordinator", "A broker's wrong password", "fail broker")
    finally:
        server.config_set("requirepass", "")
        server.close()
    setting(broker_url=None)
    coordinator.sees("coordinator", "No broker", "warn broker")


def test_stores(
    coordinator: Doctor, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    setting(object_store_url=f"file://{tmp_path}/file/store")
    coordinator.sees("coordinator", "A store that cannot be made", "fail object store")
    setting(object_store_url=f"file://{tmp_path}/store")
    _space(monkeypatch, 100 << 20)
    coordinator.sees("coordinator", "A full disk", "fail space in store")
    _space(monkeypatch, 2 << 30)
    coordinator.sees("coordinator", "A disk that will soon be full", "warn space in store")


def test_a_read_only_store(coordinator: Doctor, setting: Setting, tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.geteuid() == 0:  # who may write everywhere but where the kernel takes no files
        folder = Path("/proc")
    setting(object_store_url=f"file://{folder}")
    found = {each["name"]: each for each in coordinator.findings("--coordinator")}
    assert found["object store"]["level"] == "fail"
    assert str(folder) in found["object store"]["mend"]


def _space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("api.checks.shutil.disk_usage", lambda _: usage(free, 0, free))


def test_a_database_whose_clock_is_wrong(
    coordinator: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = checks.time.time
    monkeypatch.setattr("api.checks.time.time", lambda: now() - 90)
    found = {each["name"]: each for each in coordinator.findings("--coordinator")}
    assert found["database clock"]["level"] == "warn"
    assert "ahead of" in found["database clock"]["message"]
