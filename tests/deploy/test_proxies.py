"""TLS in front of two replicas: what passes, what is refused, what the coordinator hears of it."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.config import Settings
from core.federation.plan import RunSpec
from core.wire.messages import CONTENT_TYPE_TENSORS, LEASE_HEADER
from tests.api.support import SPACE, a_plan, update_body
from tests.api.test_coordinator_process import environment
from tests.deploy.proxies import Authority, Proxy, Replica, authority, running, until_ready
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

    def address(self, path: str) -> str:
        """Of the one request for ``path``, as a replica logs it, just after its answer."""
        end = time.monotonic() + 10
        while True:
            lines = [line for r in self.replicas for line in r.log.read_text().splitlines()]
            seen = [json.loads(line) for line in lines if f'"{path}"' in line]
            found = [line["address"] for line in seen if line["event"] == "request"]
            if found:
                (only,) = found
                return str(only)
            assert time.monotonic() < end, f"{path} was not logged"
            time.sleep(0.05)


@pytest.fixture
def replicas(
    database_url: str, tmp_path: Path, no_fhv_environment: None
) -> Iterator[tuple[list[Replica], Settings]]:
    """Two coordinators over one database, that believe a proxy on this machine."""
    (tmp_path / "objects").mkdir()
    env = environment(
        database_url,
        tmp_path / "objects",
        FHV_TRUSTED_PROXIES="127.0.0.1",
        FHV_HEARTBEAT_S="0.5",
        OMP_NUM_THREADS="1",
    )
    settings = Settings(
        env="prod",
        token_pepper=env["FHV_TOKEN_PEPPER"],
        database_url=database_url,
        object_store_url=env["FHV_OBJECT_STORE_URL"],
    )
    started = [Replica(env, tmp_path) for _ in range(2)]
    try:
        for replica in started:
            replica.wait()
        yield started, settings
    finally:
        for replica in started:
            replica.stop()


@pytest.fixture
def deployments(
    replicas: tuple[list[Replica], Settings], tmp_path: Path
) -> Iterator[list[Deployment]]:
    """Both proxies in front of the two: what takes seconds to start is the coordinator."""
    started, settings = replicas
    made = authority(tmp_path)
    admin = issue(settings, "admin")
    trust = ssl.create_default_context(cafile=str(made.root))
    with ExitStack() as stack:
        found = []
        for kind in ("nginx", "caddy"):
            (tmp_path / kind).mkdir()
            proxy = stack.enter_context(running(kind, tmp_path / kind, made, started))
            until_ready(f"{proxy.url}/readyz", proxy.process, trust)
            http = httpx.Client(
                base_url=proxy.url,
                headers={"Authorization": f"Bearer {admin}"},
                transport=httpx.HTTPTransport(verify=trust, local_address=CALLER),
                timeout=30,
            )
            stack.enter_context(http)
            found.append(Deployment(proxy, started, made, settings, http, admin))
        yield found


def test_what_passes_what_is_refused_and_what_the_coordinator_hears(
    deployments: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test: two coordinators take longer to start than everything below."""
    with monkeypatch.context() as patch:
        # As a site does, with its own authority.
        patch.setenv("SSL_CERT_FILE", str(deployments[0].made.root))
        for deployed in deployments:
            with CoordinatorClient(deployed.proxy.url, deployed.admin) as client:
                assert client.runs()["items"] == []
    for deployed in deployments:
        everything_comes_over_tls_and_with_the_callers_address(deployed)
        nobody_but_the_proxy_says_where_a_request_comes_from(deployed)
        a_strangers_certificate_is_not_accepted(deployed)
        metrics_stay_inside(deployed)
        both_replicas_get_requests(deployed)
        order = a_leased_order(deployed)
        bodies_are_as_large_as_the_coordinator_takes_them(deployed, order)
        a_long_poll_waits_as_long_as_it_asked(deployed)
        events_come_as_they_happen_and_an_update_passes(deployed, order)
        who_sends_its_headers_slowly_is_cut_off(deployed)
    first, second = deployments[0].replicas
    first.stop()
    for deployed in deployments:
        for _ in range(6):
            assert deployed.http.get("/v1/runs").status_code == 200, deployed.proxy.kind
    second.stop()
    for deployed in deployments:
        that_nobody_is_there_is_said(deployed)


def enrolled(deployed: Deployment, name: str) -> dict[str, Any]:
    deployed.http.post("/v1/spaces", json=SPACE).raise_for_status()
    body = {
        "name": name, "space": "tiny", "site": f"hospital-{name}", "population": f"{name}/all",
        "unit": "record", "managed": False, "budget": {"epsilon": 8.0, "delta": 1e-5},
    }  # fmt: skip
    found: dict[str, Any] = deployed.http.post("/v1/clients", json=body).raise_for_status().json()
    return found


def a_leased_order(deployed: Deployment) -> dict[str, Any]:
    """A run with one client that has its order; ``path``, ``bearer`` and ``run`` with it."""
    http, name = deployed.http, f"site-{deployed.proxy.kind}"
    client = enrolled(deployed, name)
    rules = {"quorum": 1, "deadline_s": 900.0, "lease_s": 300.0}
    plan = a_plan(f"run-{deployed.proxy.kind}", round=rules)
    made = http.post("/v1/runs", json={"plan": plan, "clients": [name]})
    run = made.raise_for_status().json()
    http.post(f"/v1/runs/{run['id']}/start").raise_for_status()
    bearer = {"Authorization": f"Bearer {client['token']}", "X-FHV-Protocol-Range": "1-1"}
    path = f"/v1/clients/{client['client']['id']}/work"
    found = http.get(path, params={"wait": 20}, headers=bearer).raise_for_status().json()
    return found | {"path": path, "bearer": bearer, "run": run["id"]}


def everything_comes_over_tls_and_with_the_callers_address(deployed: Deployment) -> None:
    path = f"/v1/runs/{uuid4()}"
    answer = deployed.http.get(path, headers={"X-Forwarded-For": "203.0.113.9, 198.51.100.1"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["strict-transport-security"] == "max-age=63072000"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers.get("server") in (None, "nginx")
    assert deployed.address(path) == CALLER
    plain = httpx.get(
        f"http://127.0.0.1:{deployed.proxy.http}/v1/runs?x=1", headers={"Host": "localhost"}
    )
    assert plain.status_code == 308
    assert plain.headers["location"].startswith("https://localhost")
    assert plain.headers["location"].endswith("/v1/runs?x=1")


def nobody_but_the_proxy_says_where_a_request_comes_from(deployed: Deployment) -> None:
    path = f"/v1/runs/{uuid4()}"
    url = f"http://127.0.0.1:{deployed.replicas[0].port}{path}"
    with httpx.Client(transport=httpx.HTTPTransport(local_address=CALLER)) as direct:
        direct.get(url, headers={"X-Forwarded-For": "203.0.113.9"})
    assert deployed.address(path) == CALLER


def a_strangers_certificate_is_not_accepted(deployed: Deployment) -> None:
    with httpx.Client() as stranger, pytest.raises(httpx.ConnectError, match="certificate"):
        stranger.get(f"{deployed.proxy.url}/healthz")


def metrics_stay_inside(deployed: Deployment) -> None:
    assert deployed.http.get("/metrics").status_code == 404
    inside = httpx.get(
        f"http://127.0.0.1:{deployed.replicas[0].port}/metrics",
        headers={"Authorization": f"Bearer {deployed.admin}"},
    )
    assert inside.status_code == 200


def both_replicas_get_requests(deployed: Deployment) -> None:
    path = f"/v1/runs/{uuid4()}"
    end = time.monotonic() + 10
    while not all(path in replica.log.read_text() for replica in deployed.replicas):
        assert time.monotonic() < end, deployed.proxy.kind
        deployed.http.get(path)


def bodies_are_as_large_as_the_coordinator_takes_them(
    deployed: Deployment, order: dict[str, Any]
) -> None:
    limit = deployed.settings.max_json_bytes
    too_large = b" " * (limit + 1)
    for body in (too_large, iter([too_large])):  # of a length that is told, and of one that is not
        large = deployed.http.post("/v1/planner", content=body)
        assert large.status_code == 413, (deployed.proxy.kind, large.text)
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


def a_long_poll_waits_as_long_as_it_asked(deployed: Deployment) -> None:
    idle = enrolled(deployed, f"idle-{deployed.proxy.kind}")
    started = time.monotonic()
    answer = deployed.http.get(
        f"/v1/clients/{idle['client']['id']}/work",
        params={"wait": 1.5},
        headers={"Authorization": f"Bearer {idle['token']}"},
    )
    assert answer.status_code == 204
    assert 1.4 < time.monotonic() - started < 10


def events_come_as_they_happen_and_an_update_passes(
    deployed: Deployment, order: dict[str, Any]
) -> None:
    """One stream is open while the update goes the same way: it is told while nothing else ends."""
    spec = RunSpec.model_validate(order["spec"])
    seen = ""
    with deployed.http.stream("GET", f"/v1/runs/{order['run']}/events") as feed:
        assert feed.headers["content-type"].startswith("text/event-stream")
        pieces = feed.iter_text()
        while seen.count("\n\n") < 3:  # the state, then heartbeats: nothing holds them back
            seen += next(pieces)
        assert "event: state" in seen
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


def who_sends_its_headers_slowly_is_cut_off(deployed: Deployment) -> None:
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


def that_nobody_is_there_is_said(deployed: Deployment) -> None:
    answer = deployed.http.get("/v1/runs")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "5"
    assert answer.headers["strict-transport-security"] == "max-age=63072000"
    assert answer.json()["code"] == "not-ready"
