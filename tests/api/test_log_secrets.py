"""No line of a whole run's log holds a token, a lease, the pepper or a body."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from uuid import uuid4

import pytest
import structlog

from api.auth import lease_token
from api.observability import configure, scrubbed
from core.wire.credentials import new_code, new_token
from tests.api.support import Coordinator


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Logs as the program writes them, at DEBUG."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    configure("DEBUG")
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)  # the caller's, not ours
    structlog.configure(cache_logger_on_first_use=False)
    yield written
    root.handlers = handlers
    root.setLevel(level)
    structlog.configure(**before)


async def test_a_whole_run_logs_no_secret(
    lines: io.StringIO, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    leases = []
    for name in ("site-a", "site-b"):
        order = await coordinator.poll(name)
        assert order is not None
        leases.append(order["lease_token"])
        assert (await coordinator.send(order, b"a body that is wrong")).status_code == 422
        assert (await coordinator.send(order)).status_code == 201
    leases.append((await coordinator.aggregate())["lease_token"])
    body = {"run": "run-1", "n": 3, "seed": 7}
    await coordinator.ok("POST", "/synthesize", "scientist", json=body)
    by_url = await coordinator.call("GET", "/v1/runs?after=fhv_admin_asked", "admin")
    assert by_url.status_code == 422
    made = await coordinator.ok("POST", "/v1/tokens", json={"scope": "auditor", "label": "x"})
    stranger = {"Authorization": "Bearer fhv_admin_a-token-of-nobody"}
    assert (await coordinator.http.get("/v1/clients", headers=stranger)).status_code == 401

    async def broken(*_: object) -> None:
        raise RuntimeError(f"crashed with {coordinator.tokens['admin']} and {leases[0]}")

    monkeypatch.setattr("api.clients.repository.page", broken)
    assert (await coordinator.call("GET", "/v1/clients")).status_code == 500

    text = lines.getvalue()
    events = [json.loads(line) for line in text.splitlines()]
    seen = {event["event"] for event in events}
    assert {"request", "update_refused", "job_leased", "job_done", "request_crashed"} <= seen
    assert all(event.get("request_id") for event in events if event["event"] == "request")
    assert run["id"] in text
    secrets = [*coordinator.tokens.values(), *leases, made["token"], "a-token-of-nobody"]
    secrets += [coordinator.ctx.settings.pepper.decode(), "a body that is wrong", "fhv_admin_asked"]
    assert [secret for secret in secrets if secret in text] == []
    # Neither does half of one stand there.
    assert [lease for lease in leases if lease.rpartition(".")[2] in text] == []
    crash = next(event for event in events if event["event"] == "request_crashed")
    assert "crashed with fhv_admin_[hidden] and" in crash["exception"]


def test_what_has_a_secret_s_form_is_hidden_and_nothing_else() -> None:
    token, lease = new_token("worker"), lease_token(uuid4(), 3, b"pepper")
    assert scrubbed(f"a {token} b") == "a fhv_worker_[hidden] b"
    assert scrubbed('"whsec_c2VjcmV0IG9mIGEgd2ViaG9vaw=="') == '"whsec_[hidden]"'
    assert scrubbed(json.dumps({"lease": lease})) == json.dumps(
        {"lease": f"{lease.rpartition('.')[0]}.[hidden]"}
    )
    assert scrubbed(f"code {new_code()}.") == "code [hidden]."
    url = "cannot reach postgresql://fhv:pa55w0rd@db:5432/fhv"
    assert scrubbed(url) == "cannot reach postgresql://fhv:[hidden]@db:5432/fhv"
    for harmless in (
        "sha256:" + "ab" * 32,
        str(uuid4()),
        "fhv_round_wait_seconds",
        "http://coordinator:8000/v1/runs",
        "redis://valkey:6379/0 and x@y.z",
    ):
        assert scrubbed(harmless) == harmless
