"""Settings that come from files: one place only, named errors, no value in any of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.config import Secrets, Settings, SettingsError, database_url, load
from core.secret_files import MAX_BYTES, SettingFileError, from_file, from_files
from worker.config import load_settings
from worker.errors import ConfigError


def test_a_file_gives_its_value_without_white_space(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    path.write_text("  a value with spaces inside \n\n")
    environment = {"FHV_TOKEN_PEPPER_FILE": str(path), "FHV_HOST": "x", "FHV_PORT_FILE": ""}
    assert from_files(["token_pepper", "host", "port"], environment) == {
        "token_pepper": "a value with spaces inside"
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read .*: No such file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe hunter2", "not UTF-8"),
        (b"x" * (MAX_BYTES + 1), "more than 65536 bytes"),
    ],
)
def test_a_file_that_is_no_value_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "value"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingFileError, match=words) as caught:
        from_file("token", {"FHV_TOKEN_FILE": str(path)})
    assert caught.value.setting == "FHV_TOKEN_FILE"
    assert "hunter2" not in str(caught.value)


def test_a_value_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_text("one")
    with pytest.raises(SettingFileError, match="FHV_TOKEN is set as well"):
        from_file("token", {"FHV_TOKEN_FILE": str(path), "FHV_TOKEN": "two"})
    # Compose sets a variable that has no value to nothing.
    assert from_file("token", {"FHV_TOKEN_FILE": str(path), "FHV_TOKEN": ""}) == "one"


def test_the_coordinator_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_fhv_environment: None
) -> None:
    values = {
        "database_url": "postgresql://fhv:hunter2@db/fhv",
        "token_pepper": "a pepper for tests only",
        "broker_url": "redis://:hunter2@valkey/0",
        "metrics_token": "a token for metrics",
        "object_store_url": "file:///objects",
        "port": "8123",
    }
    for name, value in values.items():
        (tmp_path / name).write_text(value + "\n")
        monkeypatch.setenv(f"FHV_{name.upper()}_FILE", str(tmp_path / name))
    found = load(Settings)
    assert found.database_url == database_url() == "postgresql+psycopg://fhv:hunter2@db/fhv"
    assert found.pepper == values["token_pepper"].encode()
    assert found.broker_url == values["broker_url"]
    assert found.metrics_token is not None
    assert found.metrics_token.get_secret_value() == values["metrics_token"]
    assert found.port == 8123
    assert load(Settings, port=9000).port == 9000  # an option of the command comes first
    monkeypatch.setenv("FHV_DATABASE_URL", "postgresql://elsewhere/x")
    for read in (lambda: load(Secrets), database_url):
        with pytest.raises(SettingsError, match=r"FHV_DATABASE_URL_FILE: .*set one of the two"):
            read()
    monkeypatch.delenv("FHV_DATABASE_URL")
    (tmp_path / "token_pepper").write_text("short")
    with pytest.raises(SettingsError, match=r"FHV_TOKEN_PEPPER: .*at least 16") as caught:
        load(Settings)
    assert "short" not in str(caught.value)


def test_workers_and_agents_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_fhv_environment: None
) -> None:
    (tmp_path / "broker_url").write_text("redis://:y@valkey/0\n")
    monkeypatch.setenv("FHV_BROKER_URL_FILE", str(tmp_path / "broker_url"))
    monkeypatch.setenv("FHV_TOKEN_FILE", str(tmp_path / "token"))  # read later, and again
    found = load_settings()
    assert found.require_broker_url() == "redis://:y@valkey/0"
    assert found.token_file == tmp_path / "token"
    (tmp_path / "broker_url").unlink()
    with pytest.raises(ConfigError, match="FHV_BROKER_URL_FILE: cannot read"):
        load_settings()


@pytest.mark.parametrize("value", ["*", "0.0.0.0/0", "::/0", "proxy", "127.0.0.1/8", "10.0.0.1,x"])
def test_nobody_trusts_everybody_by_mistake(
    value: str, monkeypatch: pytest.MonkeyPatch, no_fhv_environment: None
) -> None:
    monkeypatch.setenv("FHV_ENV", "dev")
    monkeypatch.setenv("FHV_DATABASE_URL", "postgresql://x/x")
    monkeypatch.setenv("FHV_OBJECT_STORE_URL", "file:///x")
    assert load(Settings).proxies == []
    monkeypatch.setenv("FHV_TRUSTED_PROXIES", value)
    with pytest.raises(SettingsError, match="FHV_TRUSTED_PROXIES"):
        load(Settings)
    monkeypatch.setenv("FHV_TRUSTED_PROXIES", "127.0.0.1, 172.30.0.0/24,::1")
    assert load(Settings).proxies == ["127.0.0.1", "172.30.0.0/24", "::1"]
