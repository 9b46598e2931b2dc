"""TLS in front of two replicas: what passes, what is refused, what the coordinator hears of it."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.config import Settings
from core.federation.plan import RunSpec
from core.wire.messages import CONTENT_TYPE_TENSORS, LEASE_HEADER
from tests.api.support import SPACE, a_plan, update_body
from tests.api.test_coordinator_process import environment
from tests.conftest import empty
from tests.deploy.proxies import Authority, Proxy, Replica, authority, running, until_ready
from tests.deploy.tools import tool
from tests.worker.real import issue
from worker.client import CoordinatorClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CALLER = "127.0.0.5"  # the proxy itself calls from 127.0.0.1
MIB = 2**20


@dataclass
class Deployment:
    proxy: Proxy
    replicas: list[Replica]
    made: Authority
    settings: Settings
    http: httpx.Client
    admin: str

    def addresses(self, path: str) -> list[str]:
        """Of all requests for ``path``, as the replicas have logged them."""
        lines = [line for r in self.replicas for line in r.log.read_text().splitlines()]
        seen = [json.loads(line) for line in lines if f'"{path}"' in line]
        return [line["address"] for line in seen if line["event"] == "request"]


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def deployed(
    request: pytest.FixtureRequest,
    worker_database_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    tool(request.param)
    empty(worker_database_url)
    folder = tmp_path_factory.mktemp(request.param)
    made = authority(folder)
    (folder / "objects").mkdir()
    env = environment(
        worker_database_url,
        folder / "objects",
        FHV_TRUSTED_PROXIES="127.0.0.1",
        FHV_HEARTBEAT_S="0.5",
        OMP_NUM_THREADS="1",
    )
    settings = Settings(
        env="prod",
        token_pepper=env["FHV_TOKEN_PEPPER"],
        database_url=worker_database_url,
        object_store_url=env["FHV_OBJECT_STORE_URL"],
    )
    replicas = [Replica(env, folder) for _ in range(2)]
    try:
        for replica in replicas:
            replica.wait()
        trust = ssl.create_default_context(cafile=str(made.root))
        with running(request.param, folder, made, replicas) as proxy:
            until_ready(f"{proxy.url}/readyz", proxy.process, trust)
            admin = issue(settings, "admin")
            with httpx.Client(
                base_url=proxy.url,
                headers={"Authorization": f"Bearer {admin}"},
                transport=httpx.HTTPTransport(verify=trust, local_address=CALLER),
                timeout=30,
            ) as http:
                yield Deployment(proxy, replicas, made, settings, http, admin)
    finally:
        for replica in replicas:
            replica.stop()


@pytest.fixture(scope="module")
def order(deployed: Deployment) -> dict[str, Any]:
    """A run with one client that has its order; ``client``, ``token`` and ``run`` with it."""
    http = deployed.http
    http.post("/v1/spaces", json=SPACE).raise_for_status()
    body = {
        "name": "site-a", "space": "tiny", "site": "hospital-a", "population": "a/all",
        "unit": "record", "managed": False, "budget": {"epsilon": 8.0, "delta": 1e-5},
    }  # fmt: skip
    client = http.post("/v1/clients", json=body).raise_for_status().json()
    plan = a_plan("run-1", round={"quorum": 1, "deadline_s": 900.0, "lease_s": 300.0})
    made = http.post("/v1/runs", json={"plan": plan, "clients": ["site-a"]})
    run = made.raise_for_status().json()
    http.post(f"/v1/runs/{run['id']}/start").raise_for_status()
    bearer = {"Authorization": f"Bearer {client['token']}", "X-FHV-Protocol-Range": "1-1"}
    path = f"/v1/clients/{client['client']['id']}/work"
    found = http.get(path, params={"wait": 20}, headers=bearer).raise_for_status().json()
    return found | {"path": path, "bearer": bearer, "run": run["id"]}


def test_everything_comes_over_tls_and_with_the_callers_address(deployed: Deployment) -> None:
    path = f"/v1/runs/{uuid4()}"
    answer = deployed.http.get(path, headers={"X-Forwarded-For": "203.0.113.9, 198.51.100.1"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["strict-transport-security"] == "max-age=63072000"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers.get("server") in (None, "nginx")
    assert deployed.addresses(path) == [CALLER]
    plain = httpx.get(
        f"http://127.0.0.1:{deployed.proxy.http}/v1/runs?x=1", headers={"Host": "localhost"}
    )
    assert plain.status_code == 308
    assert plain.headers["location"].startswith("https://localhost")
    assert plain.headers["location"].endswith("/v1/runs?x=1")


def test_nobody_but_the_proxy_may_say_where_a_request_comes_from(deployed: Deployment) -> None:
    path = f"/v1/runs/{uuid4()}"
    url = f"http://127.0.0.1:{deployed.replicas[0].port}{path}"
    with httpx.Client(transport=httpx.HTTPTransport(local_address=CALLER)) as direct:
        direct.get(url, headers={"X-Forwarded-For": "203.0.113.9"})
    assert deployed.addresses(path) == [CALLER]


def test_a_strangers_certificate_is_not_accepted(deployed: Deployment) -> None:
    with httpx.Client() as stranger, pytest.raises(httpx.ConnectError, match="certificate"):
        stranger.get(f"{deployed.proxy.url}/healthz")


def test_metrics_stay_inside(deployed: Deployment) -> None:
    assert deployed.http.get("/metrics").status_code == 404
    inside = httpx.get(
        f"http://127.0.0.1:{deployed.replicas[0].port}/metrics",
        headers={"Authorization": f"Bearer {deployed.admin}"},
    )
    assert inside.status_code == 200


def test_both_replicas_get_requests(deployed: Deployment) -> None:
    path = f"/v1/runs/{uuid4()}"
    for _ in range(8):
        deployed.http.get(path)
    assert all(path in replica.log.read_text() for replica in deployed.replicas)


def test_bodies_are_as_large_as_the_coordinator_takes_them(
    deployed: Deployment, order: dict[str, Any]
) -> None:
    limit = deployed.settings.max_json_bytes
    large = deployed.http.post("/v1/planner", content=b" " * (limit + 1))
    assert large.status_code == 413
    assert large.headers["content-type"] == "application/problem+json"
    assert large.json()["code"] == "payload-too-large"
    fits = deployed.http.post("/v1/planner", content=b" " * limit)
    assert fits.status_code == 422, fits.text  # the coordinator's own answer
    update = f"/v1/runs/{order['run']}/rounds/0/updates/{uuid4()}"
    headers = {
        **order["bearer"],
        "Content-Type": CONTENT_TYPE_TENSORS,
        LEASE_HEADER: order["lease_token"],
    }
    more = deployed.http.put(update, content=b" " * (limit + MIB), headers=headers)
    assert more.status_code == 413
    assert more.json()["limit"] < limit  # of this round: the coordinator's, not the proxy's


def test_a_long_poll_waits_as_long_as_it_asked(deployed: Deployment, order: dict[str, Any]) -> None:
    """The client holds its order: it is told so at once. Another one waits."""
    again = deployed.http.get(order["path"], params={"wait": 2}, headers=order["bearer"])
    assert again.json()["work_id"] == order["work_id"]
    body = {
        "name": "site-b", "space": "tiny", "site": "hospital-b", "population": "b/all",
        "unit": "record", "managed": False, "budget": {"epsilon": 8.0, "delta": 1e-5},
    }  # fmt: skip
    idle = deployed.http.post("/v1/clients", json=body).raise_for_status().json()
    started = time.monotonic()
    answer = deployed.http.get(
        f"/v1/clients/{idle['client']['id']}/work",
        params={"wait": 1.5},
        headers={"Authorization": f"Bearer {idle['token']}"},
    )
    assert answer.status_code == 204
    assert 1.4 < time.monotonic() - started < 10


def test_events_come_as_they_happen_and_an_update_passes(
    deployed: Deployment, order: dict[str, Any]
) -> None:
    """One stream is open while the update goes the same way: it is told while nothing else ends."""
    spec = RunSpec.model_validate(order["spec"])
    seen = ""
    with deployed.http.stream("GET", f"/v1/runs/{order['run']}/events") as feed:
        assert feed.headers["content-type"].startswith("text/event-stream")
        pieces = feed.iter_text()
        while "event: state" not in seen or ":" not in seen.rpartition("\n\n")[2]:
            seen += next(pieces)
            if seen.count("\n\n") >= 2:
                break  # the state, then a heartbeat: the stream is not held back
        sent = deployed.http.put(
            f"/v1/runs/{order['run']}/rounds/0/updates/{uuid4()}",
            content=update_body(spec, 0),
            headers={
                **order["bearer"],
                "Content-Type": CONTENT_TYPE_TENSORS,
                LEASE_HEADER: order["lease_token"],
            },
        )
        assert sent.status_code == 201, sent.text
        end = time.monotonic() + 15
        while "update-accepted" not in seen:
            assert time.monotonic() < end, seen
            seen += next(pieces)


def test_a_client_of_ours_speaks_to_it(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a site does, with its own authority in SSL_CERT_FILE."""
    monkeypatch.setenv("SSL_CERT_FILE", str(deployed.made.root))
    with CoordinatorClient(deployed.proxy.url, deployed.admin) as client:
        assert client.run("run-1")["name"] == "run-1"


def test_who_sends_its_headers_slowly_is_cut_off(deployed: Deployment) -> None:
    trust = ssl.create_default_context(cafile=str(deployed.made.root))
    with (
        socket.create_connection(("127.0.0.1", deployed.proxy.https)) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        secured.settimeout(15)
        started = time.monotonic()
        answer = secured.recv(4096)
        assert time.monotonic() - started < 10
        assert answer == b"" or b" 408 " in answer.partition(b"\r\n")[0]


def test_a_replica_that_goes_is_not_missed_and_none_is_said_so(deployed: Deployment) -> None:
    """The last test of a deployment: it ends both."""
    first, second = deployed.replicas
    first.stop()
    for _ in range(6):
        assert deployed.http.get("/v1/runs").status_code == 200
    second.stop()
    answer = deployed.http.get("/v1/runs")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "5"
    assert answer.headers["strict-transport-security"] == "max-age=63072000"
    assert answer.json()["code"] == "not-ready"
