"""A site's machine, broken in one way after the other, against a real coordinator."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import psycopg
import pytest
import torch

from tests.doctor.conftest import Doctor, Setting
from tests.worker import real
from worker.agent.site import LEDGER_FILE, SECRET_FILE, Site

TOML = """[site]
state_dir = "state"
[[client]]
name = "site-a"
data = "site-a.npz"
unit = "{unit}"
population = "site-a/all"
max_epsilon = 8.0
delta = 1e-5
min_noise_multiplier = 0.3
"""


@pytest.fixture
def federation(database_url: str, tmp_path: Path) -> Iterator[real.Federation]:
    with real.federation(database_url, tmp_path) as fed:
        fed.enrol("site-a", "site-a/all")
        yield fed


@pytest.fixture
def folder(doctor: Doctor, setting: Setting, tmp_path: Path) -> Path:
    """A site's files, as they should be."""
    folder = tmp_path / "site"
    folder.mkdir()
    real.write_records(folder / "site-a.npz", seed=1).chmod(0o600)
    (folder / "site.toml").write_text(TOML.format(unit="record"))
    setting(site_config=folder / "site.toml", device="cpu")
    return folder


@pytest.fixture
def site(doctor: Doctor, setting: Setting, federation: real.Federation, folder: Path) -> Doctor:
    setting(coordinator_url=federation.url, token=federation.tokens["site-a"])
    return doctor


@pytest.fixture
def alone(doctor: Doctor, setting: Setting, folder: Path) -> Doctor:
    """Its files without a coordinator: only these are looked at."""
    setting(coordinator_url="http://127.0.0.1:9", token="fhv_client_x")
    return doctor


AWAY = "fail coordinator"


def test_all_is_well(site: Doctor) -> None:
    found = {each["name"]: each for each in site.findings("--site") if each["part"] == "site"}
    assert {each["level"] for each in found.values()} == {"ok"}, found
    assert set(found) == {
        "settings", "coordinator", "clock", "token", "client", "site.toml", "data of site-a",
        "state folder", "device",
    }  # fmt: skip


def test_settings(alone: Doctor, setting: Setting) -> None:
    setting(coordinator_url="coordinator.example", device="gpu")
    alone.sees("site", "Unusable settings", "fail settings", "fail settings")


def test_nothing_is_set(doctor: Doctor) -> None:
    doctor.sees("site", "Nothing is set", AWAY, "fail token", "warn site.toml")


# --- the coordinator ---


def test_a_coordinator_that_is_away(alone: Doctor) -> None:
    alone.sees("site", "A coordinator that is away", AWAY)


def test_a_coordinator_that_is_not_ready(
    federation: real.Federation, doctor: Doctor, setting: Setting, folder: Path
) -> None:
    lame = federation.settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"})
    with real.served(lame) as url:
        setting(coordinator_url=url, token=federation.tokens["site-a"])
        doctor.sees("site", "A coordinator that is not ready", "warn coordinator")


class Other(BaseHTTPRequestHandler):
    """Another web server, whose clock is so many seconds ahead; None: it sends no date."""

    status, ahead_s = 200, 0.0
    silent = False

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        if not self.silent:
            self.send_header("Date", self.date_time_string(int(time.time() + self.ahead_s)))
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def web_server(**how: object) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (Other,), how))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_another_web_server(alone: Doctor, setting: Setting) -> None:
    with web_server(status=404) as url:
        setting(coordinator_url=url)
        alone.sees("site", "Another web server at the coordinator's address", AWAY)


@pytest.mark.parametrize(
    ("case", "how", "level"),
    [
        ("A clock that is a minute off", {"ahead_s": 60.0}, "warn"),
        ("A clock that is an hour off", {"ahead_s": -3600.0}, "fail"),
        ("A proxy that drops the date", {"silent": True}, "warn"),
    ],
)
def test_clocks(
    alone: Doctor, setting: Setting, case: str, how: dict[str, object], level: str
) -> None:
    with web_server(**how) as url:
        setting(coordinator_url=url, token=None)
        found = alone.findings("--site")
        (clock,) = [each for each in found if each["name"] == "clock"]
        assert clock["level"] == level
        if "ahead_s" in how:
            # Date is cut to seconds: a second more or less depends on the moment.
            seconds = int(clock["message"].split()[0])
            assert abs(seconds - abs(float(str(how["ahead_s"])))) <= 2
            assert ("behind" if float(str(how["ahead_s"])) > 0 else "ahead of") in clock["message"]


# --- the token ---


def test_tokens(
    site: Doctor,
    setting: Setting,
    federation: real.Federation,
    folder: Path,
    database_url: str,
) -> None:
    setting(token="'copied with quotes'".replace(" ", ""))
    site.sees("site", "A token that was not copied as a whole", "fail token")
    setting(token="fhv_client_unknown")
    site.sees("site", "A token of another coordinator", "fail token")
    setting(token=real.issue(federation.settings, "scientist"))
    site.sees("site", "A data scientist's token at a site", "warn token")
    worker = federation.operator.create_token(scope="worker", label="w", expires_in_s=600.0)
    setting(token=worker["token"])
    site.sees("site", "A token that ends soon", "warn token")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "UPDATE tokens SET expires_at = now() - interval '1 second' WHERE id = %s",
            (worker["id"],),
        )
    site.sees("site", "A token that has expired", "fail token")
    federation.operator.revoke_token(worker["id"])
    site.sees("site", "A token that was revoked", "fail token")
    federation.enrol("site-b", "site-b/all")
    kept = folder / "token"
    kept.write_text(federation.tokens["site-a"])
    kept.chmod(0o644)
    setting(token=None, token_file=kept)
    site.sees("site", "A token file that others may read", "fail token")
    kept.chmod(0o600)
    assert not [each for each in site.findings("--site") if each["level"] != "ok"]
    setting(token_file=folder / "nowhere")
    site.sees("site", "A token file that is not there", "fail token")
    setting(token_file=None)
    setting(token=federation.tokens["site-b"])
    site.sees("site", "The token of another site", "fail client")


def test_a_client_that_was_enrolled_differently(
    site: Doctor, folder: Path, federation: real.Federation
) -> None:
    records = np.load(folder / "site-a.npz")
    unit = np.arange(len(records["y"]))
    np.savez(folder / "site-a.npz", x=records["x"], y=records["y"], unit=unit)
    (folder / "site.toml").write_text(TOML.format(unit="patient"))
    site.sees("site", "A client that was enrolled with another unit", "fail client")


# --- site.toml, records, state ---


def test_site_files(alone: Doctor, setting: Setting, folder: Path) -> None:
    toml = folder / "site.toml"
    toml.write_text("[site\n")
    alone.sees("site", "A site.toml that is no TOML", AWAY, "fail site.toml")
    toml.write_text(TOML.format(unit="record").replace("max_epsilon", "max_epsilons"))
    alone.sees("site", "A misspelt key in site.toml", AWAY, "fail site.toml", "fail site.toml")
    setting(site_config=folder / "elsewhere.toml")
    alone.sees("site", "No site.toml", AWAY, "fail site.toml")


def test_records(alone: Doctor, folder: Path) -> None:
    data = folder / "site-a.npz"
    data.chmod(0o644)
    alone.sees("site", "Records that everybody may read", AWAY, "warn data of site-a")
    np.savez(data, x=np.ones((2, 6)))
    alone.sees("site", "Records without classes", AWAY, "fail data of site-a")
    data.write_bytes(b"PK\x03\x04 cut off")
    alone.sees("site", "Damaged records", AWAY, "fail data of site-a")
    data.unlink()
    alone.sees("site", "No records", AWAY, "fail data of site-a")
    (folder / "site.toml").write_text(TOML.format(unit="patient").replace(".npz", ".parquet"))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"embedding": [[1.0]], "label": [0]}), folder / "site-a.parquet")
    alone.sees("site", "Patients without a unit", AWAY, "fail data of site-a")


def test_the_state_folder(alone: Doctor, folder: Path) -> None:
    state = folder / "state"
    Site.open(state).close()
    state.chmod(0o755)
    alone.sees("site", "A state folder that others may enter", AWAY, "warn state folder")
    state.chmod(0o700)
    (state / SECRET_FILE).chmod(0o644)
    alone.sees("site", "A secret that others may read", AWAY, "fail state folder")
    (state / SECRET_FILE).chmod(0o600)
    secret = (state / SECRET_FILE).read_bytes()
    (state / SECRET_FILE).unlink()
    alone.sees("site", "A lost secret", AWAY, "fail state folder")
    (state / SECRET_FILE).write_bytes(secret)
    (state / SECRET_FILE).chmod(0o600)
    (state / LEDGER_FILE).unlink()
    alone.sees("site", "A lost ledger", AWAY, "fail state folder")
    (state / SECRET_FILE).unlink()
    for each in state.iterdir():
        each.unlink()
    state.rmdir()
    state.write_text("a file")
    alone.sees("site", "A file where the state folder should be", AWAY, "fail state folder")


def test_broker_and_device(alone: Doctor, setting: Setting) -> None:
    setting(broker_url="redis://:secret@127.0.0.1:9/0")
    found = alone.sees("site", "A worker's broker that is away", AWAY, "fail broker")
    assert "secret" not in str(found)
    setting(broker_url=None)
    if not torch.cuda.is_available():
        setting(device="cuda:0")
        alone.sees("site", "A GPU that is not there", AWAY, "fail device")


def test_a_token_over_plain_http(alone: Doctor, setting: Setting) -> None:
    setting(coordinator_url="http://coordinator.invalid:8000")
    alone.sees("site", "A token that would cross a network unencrypted", "warn settings", AWAY)
