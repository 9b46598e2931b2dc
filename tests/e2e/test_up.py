"""``fedhypevae up``, ``down`` and ``status`` with real services, also after kill -9 of all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import Result
from typer.testing import CliRunner

from api.local import cli
from api.local.folder import Folder, Record
from core.federation.plan import EmbeddingSpace
from core.processes import Processes
from tests.commands import ROOT
from worker.answers import Retry
from worker.client import CoordinatorClient

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("no_fhv_environment")]


def called(command: str, *arguments: str, code: int = 0) -> Result:
    """``fedhypevae down`` or ``status`` in this process; the services are others."""
    app = {"down": cli.down_app, "status": cli.status_app}[command]
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done


def up(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """``fedhypevae up`` in a process of its own: what it starts is nobody's child."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.commands", "up", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def facts(folder: Path, *, code: int = 0) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        called("status", "--folder", str(folder), "--json", code=code).stdout
    )
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def running(folder: Path) -> list[str]:
    """Processes that belong to the folder, found in other ways than the program finds them."""
    home = str(folder.resolve())
    return sorted(
        process.info["name"]
        for process in psutil.process_iter(["name", "environ", "cmdline", "cwd"])
        if any(home in value for value in (process.info["environ"] or {}).values())
        or any(home in part for part in process.info["cmdline"] or ())
        or (process.info["cwd"] or "").startswith(home)
    )


def spaces(folder: Path, url: str) -> list[str]:
    token = (folder / "admin.token").read_text().strip()
    with CoordinatorClient(url, token, retry=Retry(attempts=2)) as client:
        return [space["name"] for space in client.spaces()["items"]]


SPACE = {
    "name": "kept", "backbone": "none", "weights_digest": "sha256:" + "0" * 64,
    "preprocessing": "none", "dim": 4, "classes": ["a", "b"],
}  # fmt: skip


@pytest.mark.timeout(240)
def test_up_survives_every_kill_and_down_ends_everything(service_folder: Path) -> None:
    folder, port = service_folder / "home", free_port()
    asked = ("--folder", str(folder))
    try:
        said = up(*asked, "--port", str(port))
        url = f"http://127.0.0.1:{port}"
        assert f"export FHV_COORDINATOR_URL={url}" in said.stdout
        for secret in ("admin.token", "worker.token", "pepper", "services.json"):
            assert (folder / secret).stat().st_mode & 0o077 == 0
        token = (folder / "admin.token").read_text().strip()
        with CoordinatorClient(url, token) as client:
            client.create_space(EmbeddingSpace.model_validate(SPACE))

        before = facts(folder)
        assert (before["state"], before["ready"], before["database"]) == ("ready", True, "embedded")
        again = json.loads(up(*asked, "--json").stdout)
        assert again["services"] == before["services"], "what runs already was started again"
        assert "already" in up(*asked, "--port", "1", code=2).stderr

        # One service: started again by itself.
        services = before["services"]
        assert isinstance(services, dict)
        assert set(services) == {"coordinator", "worker-coordinator", "worker-synthesis"}
        os.kill(services["worker-synthesis"]["pid"], signal.SIGKILL)
        until = time.monotonic() + 30
        while Folder(folder).record().services["worker-synthesis"].restarts != 1:
            assert time.monotonic() < until, "it was not started again"
            time.sleep(0.1)

        # Whoever runs them, the coordinator and Postgres, all at once.
        keeper = Folder(folder).keeper()
        assert keeper
        postmaster = int((folder / "pg" / "postmaster.pid").read_text().split()[0])
        for victim in (keeper, services["coordinator"]["pid"], postmaster):
            os.kill(victim, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(keeper)] if psutil.pid_exists(keeper) else [], 10)
        killed = facts(folder, code=1)
        assert (killed["state"], killed["ready"]) == ("failed", False)
        assert "killed" in str(killed["why"])
        assert {"python", "valkey-server"} <= set(running(folder)), "nothing was left over"
        after = json.loads(up(*asked, "--json").stdout)
        assert (after["url"], after["state"]) == (url, "ready")
        assert (folder / "admin.token").read_text().strip() == token
        assert spaces(folder, url) == ["kept"]
        names = running(folder)
        assert names.count("valkey-server") == 1, names
        assert names.count("python") == 4, names

        # Stopped, with Postgres; what is there stays.
        assert "stopped" in called("down", *asked).stdout
        assert running(folder) == []
        assert "nothing ran" in called("down", *asked).stdout
        assert (folder / "pg" / "PG_VERSION").exists()
    finally:
        called("down", *asked, "--delete-data", "--yes")
    assert not folder.exists()
    assert running(folder) == []


def test_a_taken_port_and_servers_of_ones_own(
    service_folder: Path, database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = service_folder / "home"
    monkeypatch.setenv("FHV_DATABASE_URL", database_url)
    monkeypatch.setenv("FHV_BROKER_URL", broker_url)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        asked = ("--folder", str(folder), "--port", port)
        refused = up(*asked, code=2)
    assert f"127.0.0.1:{port}" in refused.stderr
    assert "--port" in refused.stderr
    assert facts(folder, code=1)["state"] == "failed"

    with Processes(service_folder / "logs", folder=ROOT) as processes:
        child = processes.start(
            "up",
            [sys.executable, "-m", "tests.commands", "up", *asked, "--foreground"],
            os.environ,
        )
        until = time.monotonic() + 60
        while Folder(folder).record().state != "ready":
            processes.check()
            assert time.monotonic() < until, child.tail()
            time.sleep(0.1)
        assert not (folder / "pg").exists(), "a server of its own was started beside the given one"
        assert "run already" in up(*asked, "--foreground", code=1).stderr
        os.kill(child.pid, signal.SIGINT)
        assert child.process.wait(30) == 0
        assert "every service has been stopped" in child.tail()
    assert facts(folder, code=1)["state"] == "stopped"
    done = called("down", "--folder", str(folder), "--delete-data", "--yes")
    assert "keep what is in them" in done.stdout


def test_only_a_folder_of_its_own_is_used_or_deleted(service_folder: Path) -> None:
    folder = service_folder / "papers"
    folder.mkdir()
    (folder / "thesis.tex").write_text("unique")
    asked = ("--folder", str(folder))
    assert "thesis.tex" in up(*asked, code=1).stderr
    assert "thesis.tex" in called("down", *asked, "--delete-data", "--yes", code=1).stderr
    assert (folder / "thesis.tex").read_text() == "unique"
    silent = called("down", *asked, "--delete-data", code=1)
    assert "Aborted" in silent.output, "without an answer nothing is deleted"


def test_a_damaged_record_says_what_to_do(service_folder: Path) -> None:
    home = Folder(service_folder / "home")
    home.make()
    home.write(Record(state="ready"))
    (home.path / "services.json").write_text("{")
    assert "Remove this file" in called("status", "--folder", str(home.path), code=1).stderr
