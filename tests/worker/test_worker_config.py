"""Settings and the site's TOML: every fault is named with its key and how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.training.compute import Compute
from worker.config import load_settings, load_site
from worker.errors import ConfigError

GOOD = """
[site]
state_dir = "state"
[[client]]
name = "site-a"
data = "a.npz"
unit = "record"
population = "a/all"
max_epsilon = 8.0
delta = 1e-5
min_noise_multiplier = 0.3
"""

SECOND = GOOD.partition("[[client]]")[2].replace("site-a", "site-b")


def write(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text)
    return path


def test_a_good_file_and_relative_paths(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, GOOD))
    assert site.state_dir == tmp_path / "state"
    (client,) = site.client
    assert client.data == tmp_path / "a.npz"
    assert (client.max_sample_rate, client.space_digest) == (1.0, None)
    assert site.require("site-a") is client
    with pytest.raises(ConfigError, match="it has: site-a"):
        site.require("site-z")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("max_epsilon = 8.0", "", "client #1 max_epsilon: missing"),
        ("max_epsilon = 8.0", "max_epsilon = 0", "client #1 max_epsilon"),
        ("max_epsilon = 8.0", "max_epsilon = inf", "client #1 max_epsilon"),
        ("max_epsilon = 8.0", "max_epsilon = nan", "client #1 max_epsilon"),
        ("max_epsilon", "max_epsilom", "client #1 max_epsilom: no such key"),
        ("1e-5", "1.0", "client #1 delta"),
        ("0.3", "0.0", "client #1 min_noise_multiplier"),
        ('"record"', '"visit"', "client #1 unit"),
        ('"site-a"', '"Site A"', "client #1 name"),
        ("[[client]]", "[[klient]]", "client: missing"),
        ('state_dir = "state"', "", "site state_dir: missing"),
        ("[site]", "[site", "Mend the TOML"),
        ('"a.npz"', '"a.npz"\nspace_digest = "abc"', "client #1 space_digest"),
    ],
)
def test_faults_name_the_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_site(write(tmp_path, GOOD.replace(old, new)))
    assert says in str(raised.value)


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("8.0", "-1").replace("1e-5", "2")
    with pytest.raises(ConfigError) as raised:
        load_site(write(tmp_path, text))
    assert len(raised.value.problems) == 2


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FHV_SITE_CONFIG"):
        load_site(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("site-b", "site-a", "appears 2 times"),
        ("8.0", "4.0", "client.max_epsilon"),
        ("1e-5", "1e-6", "client.delta"),
        ('"record"', '"patient"', "client.unit"),
    ],
)
def test_one_population_has_one_account(tmp_path: Path, old: str, new: str, says: str) -> None:
    both = GOOD + "[[client]]" + SECOND
    assert len(load_site(write(tmp_path, both)).client) == 2
    with pytest.raises(ConfigError) as raised:
        load_site(write(tmp_path, GOOD + "[[client]]" + SECOND.replace(old, new)))
    assert says in str(raised.value)


def test_one_file_of_records_is_one_population(tmp_path: Path) -> None:
    twin = SECOND.replace("a/all", "b/all").replace("a.npz", "./a.npz")
    with pytest.raises(ConfigError, match="one file under two populations"):
        load_site(write(tmp_path, GOOD + "[[client]]" + twin))
    load_site(write(tmp_path, GOOD + "[[client]]" + twin.replace("a.npz", "b.npz")))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FHV_COORDINATOR_URL", "https://c.example/base/")
    monkeypatch.setenv("FHV_TOKEN", "fhv_client_x\n")
    monkeypatch.setenv("FHV_DEVICE", "cuda:1")
    monkeypatch.setenv("FHV_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("FHV_BROKER_URL", "redis://user:password@r/0")
    settings = load_settings()
    assert settings.coordinator_url == "https://c.example/base"
    assert settings.require_token() == "fhv_client_x"
    assert (settings.device, settings.log_level) == ("cuda:1", "debug")
    assert "fhv_client_x" not in repr(settings)
    assert "password" not in repr(settings)


def test_how_gradients_are_computed_is_the_sites_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().compute == Compute(device="auto")
    monkeypatch.setenv("FHV_GRADIENTS", "opacus")
    monkeypatch.setenv("FHV_MICRO_BATCH", "64")
    monkeypatch.setenv("FHV_PRECISION", "bfloat16")
    monkeypatch.setenv("FHV_DEVICE", "cpu")
    assert load_settings().compute == Compute("cpu", "opacus", 64, "bfloat16")


def test_absent_settings_say_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "SITE_CONFIG", "BROKER_URL", "OBJECT_STORE_URL"):
        monkeypatch.setenv(f"FHV_{name}", "")
    settings = load_settings()
    for call, name in (
        (settings.require_token, "FHV_TOKEN"),
        (settings.require_site, "FHV_SITE_CONFIG"),
        (settings.require_broker_url, "FHV_BROKER_URL"),
        (settings.require_object_store_url, "FHV_OBJECT_STORE_URL"),
    ):
        with pytest.raises(ConfigError, match=name):
            call()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FHV_DEVICE", "gpu"),
        ("FHV_GRADIENTS", "naive"),
        ("FHV_MICRO_BATCH", "0"),
        ("FHV_PRECISION", "float16"),
        ("FHV_COORDINATOR_URL", "coordinator:8000"),
        ("FHV_COORDINATOR_URL", "https://user:secret@coordinator"),
        ("FHV_LOG_LEVEL", "loud"),
        ("FHV_TOKEN", "secret with spaces"),
    ],
)
def test_unusable_settings_are_named_not_quoted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        load_settings()
    assert f"{name}: " in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "warn"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://localhost", False),
        ("http://[::1]:8000", False),
        ("https://far.example", False),
        ("http://far.example", True),
    ],
)
def test_plain_http_over_a_network_is_noticed(
    monkeypatch: pytest.MonkeyPatch, url: str, warn: bool
) -> None:
    monkeypatch.setenv("FHV_COORDINATOR_URL", url)
    assert load_settings().plain_http_to_elsewhere is warn
