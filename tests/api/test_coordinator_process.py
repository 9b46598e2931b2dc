"""The command line and the real server: start-up errors, a taken port, kill -9 in mid-round."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import typer
from typer.testing import CliRunner

from api import migration
from api.cli import db_app, token_app
from api.config import Secrets, Settings, SettingsError, load
from api.embedded import free_port
from core.federation.plan import RunSpec
from core.wire.messages import CONTENT_TYPE_TENSORS, LEASE_HEADER
from tests.api.support import SPACE, a_plan, update_body

ROOT = Path(__file__).resolve().parents[2]


def environment(database_url: str, folder: Path, **more: str) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    return {
        **kept,
        "FHV_TOKEN_PEPPER": "a pepper for tests only",
        "FHV_DATABASE_URL": database_url,
        "FHV_OBJECT_STORE_URL": f"file://{folder}",
        "FHV_GRACE_S": "0.5",
        **more,
    }


def command(app: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"from api.cli import {app}; {app}()", *arguments]


def call(env: dict[str, str], app: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(app, *arguments), env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@contextmanager
def served(env: dict[str, str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command("serve_app", "--port", str(port)), env=env, cwd=ROOT, stderr=subprocess.PIPE
    )
    try:
        for _ in range(200):
            if process.poll() is not None:
                raise RuntimeError(f"it ended: {process.communicate()[1]!r}")
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=20)


def test_no_pepper_no_service(monkeypatch: pytest.MonkeyPatch, no_fhv_environment: None) -> None:
    with pytest.raises(SettingsError, match="FHV_DATABASE_URL") as caught:
        load(Settings)
    assert "FHV_OBJECT_STORE_URL" in str(caught.value)
    monkeypatch.setenv("FHV_DATABASE_URL", "postgresql://nobody:hunter2@nowhere/x")
    monkeypatch.setenv("FHV_OBJECT_STORE_URL", "file:///nowhere")
    with pytest.raises(SettingsError, match="FHV_TOKEN_PEPPER") as caught:
        load(Settings)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("FHV_TOKEN_PEPPER", "short")
    with pytest.raises(SettingsError, match="at least 16"):
        load(Secrets)
    monkeypatch.setenv("FHV_ENV", "dev")
    monkeypatch.delenv("FHV_TOKEN_PEPPER")
    assert load(Settings).pepper
    monkeypatch.setenv("FHV_PORT", "0")
    with pytest.raises(SettingsError, match="FHV_PORT"):
        load(Settings)


def test_start_up_errors_are_one_clear_line(bare_database_url: str, tmp_path: Path) -> None:
    env = environment(bare_database_url, tmp_path)
    old = call(env, "serve_app", "--port", str(free_port()))
    assert (old.returncode, len(old.stderr.splitlines())) == (1, 1)
    assert "run 'fedhypevae db upgrade'" in old.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = call(env, "serve_app", "--port", str(port))
    assert (busy.returncode, len(busy.stderr.splitlines())) == (2, 1)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in busy.stderr
    bare = {key: value for key, value in env.items() if key != "FHV_TOKEN_PEPPER"}
    unset = call(bare, "serve_app")
    assert (unset.returncode, len(unset.stderr.splitlines())) == (1, 1)
    assert "FHV_TOKEN_PEPPER" in unset.stderr
    away = call({**env, "FHV_DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}, "serve_app")
    assert (away.returncode, len(away.stderr.splitlines())) == (1, 1)
    assert "database cannot be reached" in away.stderr


def test_the_database_and_tokens_from_the_command_line(
    bare_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(bare_database_url, tmp_path).items():
        monkeypatch.setenv(name, value)

    def ran(app: typer.Typer, *arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, result.stdout, result.stderr

    create = ("create", "--label", "ops", "--scope")
    code, _, told = ran(token_app, *create, "admin")
    assert (code, "db upgrade" in told) == (1, True)
    assert ran(db_app, "current")[0] == 1
    upgraded = (0, f"the database is at migration {migration.newest()}\n")
    assert ran(db_app, "upgrade")[:2] == upgraded
    down = ran(db_app, "downgrade", "base")
    assert down[:2] == (0, "the database is at migration none\n")
    assert ran(db_app, "upgrade")[:2] == upgraded
    assert ran(db_app, "current")[0] == 0
    code, token, told = ran(token_app, *create, "admin")
    assert code == 0
    assert token.startswith("fhv_admin_")
    assert token.strip() not in told
    _, listed, _ = ran(token_app, "list")
    assert "admin" in listed
    assert token.strip() not in listed
    assert ran(token_app, "revoke", listed.split()[0])[0] == 0
    assert "revoked" in ran(token_app, "list")[1]
    assert ran(token_app, "revoke", str(uuid4()))[0] == 1
    code, _, told = ran(token_app, *create, "root")
    assert (code, len(told.splitlines())) == (2, 1)
    # What was done is in the trail by now, and no command throws a trail away.
    code, _, told = ran(db_app, "downgrade", "base")
    assert (code, "there is an audit trail" in told) == (1, True)
    assert ran(db_app, "current")[0] == 0


def test_a_killed_coordinator_goes_on_where_it_was(database_url: str, tmp_path: Path) -> None:
    """kill -9 with an order out: the same order comes again, its update counts once."""
    env = environment(database_url, tmp_path)
    token = call(env, "token_app", "create", "--scope", "admin", "--label", "ops").stdout.strip()
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    admin = {"Authorization": f"Bearer {token}"}
    with served(env, port) as first:
        assert httpx.post(f"{base}/v1/spaces", json=SPACE, headers=admin).status_code == 201
        client = httpx.post(
            f"{base}/v1/clients",
            headers=admin,
            json={
                "name": "site-a",
                "space": "tiny",
                "site": "h",
                "population": "p",
                "unit": "record",
                "managed": False,
                "budget": {"epsilon": 8.0, "delta": 1e-5},
            },
        ).json()
        plan = a_plan(round={"quorum": 1}, privacy={"rounds": 0})
        body = {"plan": plan, "clients": ["site-a"]}
        run = httpx.post(f"{base}/v1/runs", json=body, headers=admin, timeout=60).json()
        httpx.post(f"{base}/v1/runs/{run['id']}/start", headers=admin)
        site = {"Authorization": f"Bearer {client['token']}"}
        work = f"{base}/v1/clients/{client['client']['id']}/work"
        order = httpx.get(work, params={"wait": 20}, headers=site, timeout=30).json()
        first.send_signal(signal.SIGKILL)
        first.wait()
    with served(env, port) as second:
        again = httpx.get(work, params={"wait": 20}, headers=site, timeout=30).json()
        assert again == order
        target = f"{base}/v1/runs/{run['id']}/rounds/0/updates/{uuid4()}"
        sent = httpx.put(
            target,
            content=update_body(RunSpec.model_validate(order["spec"]), 0),
            headers={
                **site,
                LEASE_HEADER: order["lease_token"],
                "Content-Type": CONTENT_TYPE_TENSORS,
            },
        )
        assert sent.status_code == 201
        for _ in range(100):
            shown = httpx.get(f"{base}/v1/runs/{run['id']}/rounds/0", headers=admin).json()
            if shown["state"] == "aggregating":
                break
            time.sleep(0.05)
        assert shown["state"] == "aggregating"
        ledger = httpx.get(
            f"{base}/v1/clients/{client['client']['id']}/ledger", headers=site
        ).json()
        assert [entry["kind"] for entry in ledger["entries"]] == ["reserve", "commit"]
        # A stop does not wait for a long poll.
        began = time.monotonic()
        polling = threading.Thread(
            target=httpx.get,
            args=(work,),
            kwargs={"params": {"wait": 20}, "headers": site, "timeout": 30},
        )
        polling.start()
        time.sleep(0.5)
        second.terminate()
        second.wait(10)
        polling.join(5)
        assert time.monotonic() - began < 4
