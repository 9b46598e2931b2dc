"""The embedded services: started, shared, stopped, and left alone when a URL is given."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import redis

from api import embedded


def test_postgres_runs_without_durability_only_when_asked(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
            assert row == ("off",)


@pytest.mark.slow
def test_postgres_keeps_its_data_and_its_durability(service_folder: Path) -> None:
    folder = service_folder / "data"
    with embedded.postgres(folder) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT current_setting('fsync')").fetchone() == ("on",)
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    with embedded.postgres(folder) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


def test_a_path_too_long_for_a_socket_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    with (
        pytest.raises(embedded.EmbeddedServiceError, match="too long"),
        embedded.postgres(folder),
    ):
        pass
    assert not folder.exists()


def test_valkey_answers_and_is_gone_afterwards(tmp_path: Path) -> None:
    with embedded.valkey(tmp_path) as url:
        client = redis.Redis.from_url(url)
        assert client.ping()
        client.close()
    client = redis.Redis.from_url(url, retry=None)
    with pytest.raises(redis.ConnectionError):
        client.ping()
    client.close()


def test_urls_of_the_environment_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FHV_DATABASE_URL", "postgresql://elsewhere/db")
    monkeypatch.setenv("FHV_BROKER_URL", "redis://elsewhere:6379/1")
    with embedded.postgres(tmp_path / "pg") as database, embedded.valkey(tmp_path / "vk") as broker:
        assert database == "postgresql://elsewhere/db"
        assert broker == "redis://elsewhere:6379/1"
    assert list(tmp_path.iterdir()) == []


def test_the_broker_of_a_test_is_empty(broker_url: str) -> None:
    client = redis.Redis.from_url(broker_url)
    assert client.dbsize() == 0
    client.set("left-over", "1")
    client.close()


def test_the_broker_of_the_next_test_is_empty_too(broker_url: str) -> None:
    client = redis.Redis.from_url(broker_url)
    assert client.dbsize() == 0
    client.set("left-over", "1")
    client.close()
