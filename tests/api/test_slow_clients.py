"""The real server against callers that drip, flood, smuggle or crowd: cut off in time, within the
documented limits (docs/hostile-input.md), while others are served.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil
import pytest

from api.embedded import free_port
from core.wire.messages import CONTENT_TYPE_TENSORS
from tests.api.test_coordinator_process import call, environment, served

_HEAD_S, _GRACE_S, _CONNECTIONS = 1.0, 1.5, 24
_MIB = 2**20
# What a cut may be late by on a busy machine.
_LATE_S = 6.0
_UPDATE = (
    "/v1/runs/0199c0de-0000-7000-8000-000000000001/rounds/0/"
    "updates/0199c0de-0000-7000-8000-000000000002"
)


@dataclass
class Served:
    port: int
    token: str
    process: psutil.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=15) as connection:
            yield connection

    def head(self, request: str, *lines: str) -> bytes:
        every = [f"{request} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.token}", *lines]
        return "\r\n".join([*every, "", ""]).encode()


@pytest.fixture(scope="module")
def server(worker_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    env = environment(
        worker_database_url,
        tmp_path_factory.mktemp("objects"),
        FHV_HEAD_TIMEOUT_S=str(_HEAD_S),
        FHV_BODY_GRACE_S=str(_GRACE_S),
        FHV_BODY_MIN_RATE="1000",
        FHV_MAX_HEAD_BYTES="16384",
        FHV_MAX_CONNECTIONS=str(_CONNECTIONS),
    )
    token = call(env, "token_app", "create", "--scope", "admin", "--label", "ops").stdout.strip()
    port = free_port()
    with served(env, port) as process:
        yield Served(port, token, psutil.Process(process.pid))


def _answer(connection: socket.socket) -> tuple[int, dict, bool]:
    """Status and problem of what comes until the end; 0 if nothing does. Was it cut off?"""
    came = b""
    closed = False
    try:
        while True:
            piece = connection.recv(65_536)
            if not piece:
                closed = True
                break
            came += piece
    except ConnectionError:
        closed = True
    except TimeoutError:
        pass
    if not came:
        return 0, {}, closed
    head, _, body = came.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    body = body[body.find(b"{") : body.rfind(b"}") + 1]
    return status, json.loads(body) if body else {}, closed


def _drip(connection: socket.socket, pieces: Iterator[bytes], seconds: float) -> None:
    """One piece every tenth of a second, until the other side has had enough."""
    until = time.monotonic() + seconds
    for piece in pieces:
        if time.monotonic() > until:
            return
        try:
            connection.sendall(piece)
        except OSError:
            return
        time.sleep(0.1)


def _forever(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def _others_are_served(server: Served, until: Callable[[], bool]) -> list[float]:
    """Seconds of each request of a well-behaved caller."""
    took = []
    with httpx.Client(headers={"Authorization": f"Bearer {server.token}"}) as http:
        while not until():
            started = time.monotonic()
            assert http.get(f"{server.url}/v1/clients").status_code == 200
            took.append(time.monotonic() - started)
            time.sleep(0.02)
    return took


def _timed(work: Callable[[], tuple[int, dict, bool]]) -> tuple[float, int, dict, bool]:
    started = time.monotonic()
    status, body, closed = work()
    return time.monotonic() - started, status, body, closed


def test_heads_and_bodies_that_drip_are_cut_off_while_others_are_served(server: Served) -> None:
    def headers() -> tuple[int, dict, bool]:
        with server.connected() as connection:
            connection.sendall(b"GET /v1/clients HTTP/1.1\r\nHost: x\r\n")
            _drip(connection, _forever(b"X-Drip: 1\r\n"), _HEAD_S + _LATE_S)
            return _answer(connection)

    def second_request() -> tuple[int, dict, bool]:
        """A good one first: the limit holds for every request of a connection."""
        with server.connected() as connection:
            connection.sendall(server.head("GET /healthz"))
            assert b"200 OK" in connection.recv(65_536)
            connection.sendall(b"GET /v1/cl")
            _drip(connection, _forever(b"i"), _HEAD_S + _LATE_S)
            return _answer(connection)

    def silent() -> tuple[int, dict, bool]:
        with server.connected() as connection:
            return _answer(connection)

    def body() -> tuple[int, dict, bool]:
        with server.connected() as connection:
            lines = ("Content-Type: application/json", "Content-Length: 100000")
            connection.sendall(server.head("POST /v1/spaces", *lines))
            _drip(connection, _forever(b" "), _GRACE_S + _LATE_S)
            return _answer(connection)

    def chunks() -> tuple[int, dict, bool]:
        with server.connected() as connection:
            lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
            connection.sendall(server.head("POST /v1/spaces", *lines))
            _drip(connection, _forever(b"1\r\n \r\n"), _GRACE_S + _LATE_S)
            return _answer(connection)

    def stalled() -> tuple[int, dict, bool]:
        """Nothing after the headers."""
        with server.connected() as connection:
            lines = ("Content-Type: application/json", "Content-Length: 10")
            connection.sendall(server.head("POST /v1/tokens", *lines))
            return _answer(connection)

    attacks = (headers, second_request, silent, body, chunks, stalled)
    with ThreadPoolExecutor(len(attacks)) as pool:
        running = [pool.submit(_timed, attack) for attack in attacks]
        took = _others_are_served(server, lambda: all(one.done() for one in running))
    found = {attack.__name__: one.result() for attack, one in zip(attacks, running, strict=True)}
    for name, (seconds, status, problem, closed) in found.items():
        assert closed, name
        limit = _GRACE_S if name in ("body", "chunks", "stalled") else _HEAD_S
        assert seconds < limit + _LATE_S, (name, seconds)
        if name == "silent":
            assert status == 0
        else:
            assert (status, problem["code"]) == (408, "request-timeout"), name
    assert len(took) > 10
    assert sorted(took)[len(took) // 2] < 0.5


def test_an_answered_request_may_not_go_on_sending(server: Served) -> None:
    """A body that nobody reads, behind an answer that was given at once."""
    with server.connected() as connection:
        lines = ("Content-Type: application/json", "Content-Length: 5000000")
        connection.sendall(server.head("POST /v1/spaces", *lines))
        connection.settimeout(15)
        status, problem, closed = _answer(connection)
    assert (status, problem["code"], closed) == (413, "payload-too-large", True)


def _memory(server: Served) -> int:
    return int(server.process.memory_info().rss)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: s.head("GET /v1/clients?" + "a=1&" * 5_000),
        lambda s: s.head("GET /" + "a" * 20_000),
        lambda s: s.head("GET /v1/clients", "X-Long: " + "x" * 20_000),
        lambda s: s.head("GET /v1/clients", *[f"X-{n}: y" for n in range(2_000)]),
        lambda s: s.head("GET /v1/clients", "x" * 20_000 + ": y"),
    ],
    ids=["query", "path", "header", "headers", "header's name"],
)
def test_a_head_beyond_the_limit_is_one_clear_answer(
    server: Served, make: Callable[[Served], bytes]
) -> None:
    with server.connected() as connection:
        connection.sendall(make(server))
        status, problem, closed = _answer(connection)
    assert (status, problem["code"], closed) == (431, "headers-too-large", True)
    assert httpx.get(f"{server.url}/healthz").is_success


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET /healthz HTTP/1.1\r\nX-Endless: ", b"x" * 65_536),
        (b"GET /healthz HTTP/1.1\r\n", b"X-Many: y\r\n" * 6_000),
        (b"GET /", b"a" * 65_536),
        (
            (
                b"POST /v1/spaces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"1\r\n \r\n0\r\nX-Trailer: "
            ),
            b"x" * 65_536,
        ),
        (
            b"POST /v1/spaces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;ext=",
            b"x" * 65_536,
        ),
    ],
    ids=["header", "headers", "path", "trailer", "chunk extension"],
)
def test_floods_cost_no_memory(server: Served, start: bytes, piece: bytes) -> None:
    before, sent = _memory(server), 0
    with server.connected() as connection:
        connection.sendall(start)
        try:
            while sent < 64 * _MIB:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
    assert sent < 64 * _MIB, "it took everything"
    assert _memory(server) - before < 24 * _MIB


def test_ten_gigabytes_declared_or_sent_cost_nothing(server: Served) -> None:
    before = _memory(server)
    size = f"Content-Length: {10 * 2**30}"
    for request, kind in (
        (f"PUT {_UPDATE}", CONTENT_TYPE_TENSORS),
        ("POST /v1/spaces", "application/json"),
    ):
        with server.connected() as connection:
            connection.sendall(server.head(request, f"Content-Type: {kind}", size))
            sent = 0
            try:
                while sent < 256 * _MIB:
                    connection.sendall(bytes(_MIB))
                    sent += _MIB
            except OSError:
                pass
            status, _, _ = _answer(connection)
        assert status in (0, 403, 413), request  # an administrator sends no updates
    assert _memory(server) - before < 48 * _MIB


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Nul: a\x00b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nBad Name: y\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        (
            b"POST /v1/spaces HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        b"POST /v1/spaces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        (
            b"POST /v1/spaces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"FFFFFFFFFFFFFFFFF\r\n"
        ),
        b"POST /v1/spaces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked, x\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/runs/%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        (
            b"GET /v1/spaces/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\n"
            b"Connection: close\r\n\r\n"
        ),
        (
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade, close\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ),
    ],
)
def test_what_is_no_http_ends_the_connection_and_nothing_else(server: Served, raw: bytes) -> None:
    with server.connected() as connection:
        connection.sendall(raw)
        status, _, closed = _answer(connection)
    assert closed
    assert status == 0 or status in (200, 400, 401, 404, 405, 408, 422), status
    assert status != 101
    assert httpx.get(f"{server.url}/healthz").is_success


def test_a_connection_too_many_is_told_so_and_those_that_are_there_go_on(server: Served) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(_CONNECTIONS)]
    try:
        refused = httpx.get(f"{server.url}/healthz", timeout=10)
        assert refused.status_code == 503
        assert refused.json()["code"] == "overloaded"
        assert refused.headers["Retry-After"] == "5"
        assert refused.headers["Content-Type"] == "application/problem+json"
        # The silent ones are cut off in time, and there is room again.
        until = time.monotonic() + _HEAD_S + _LATE_S
        while not httpx.get(f"{server.url}/healthz", timeout=10).is_success:
            assert time.monotonic() < until, "no room was made"
            time.sleep(0.2)
    finally:
        for one in held:
            one.close()
