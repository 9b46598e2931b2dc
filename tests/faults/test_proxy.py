"""The fault proxy does what it was told, once, to the request that was meant, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.faults.proxy import Fault, How, Proxy

BODY = bytes(range(256)) * 40
LINE = "PUT /thing"


class Upstream:
    """Counts what arrives whole."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if len(body) == int(self.headers["content-length"]):
                    upstream.bodies.append(body)
                    self._answer(201, b"received")

            def do_GET(self) -> None:
                self._answer(204 if self.path == "/empty" else 200, b"")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self._thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> Upstream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[Proxy]:
    with Proxy(["a", "b"], [upstream.port]) as made:
        yield made


Put = Callable[[str], "Future[httpx.Response]"]


@pytest.fixture
def put(proxy: Proxy) -> Iterator[Put]:
    with ThreadPoolExecutor(4) as pool:
        yield lambda party: pool.submit(
            httpx.put, f"{proxy.url(party)}/thing", content=BODY, timeout=20.0
        )


def test_without_a_fault_requests_and_answers_pass(
    proxy: Proxy, upstream: Upstream, put: Put
) -> None:
    answer = put("a").result()
    assert (answer.status_code, answer.content) == (201, b"received")
    assert upstream.bodies == [BODY]
    assert proxy.seen("a", LINE) == [201]
    assert proxy.seen("b", LINE) == []


def test_a_held_request_has_not_arrived_until_it_is_let_go(
    proxy: Proxy, upstream: Upstream, put: Put
) -> None:
    fault = proxy.plan(Fault("a", LINE, "hold-before"))
    other = put("b").result()
    waiting = put("a")
    assert fault.reached()
    assert (other.status_code, len(upstream.bodies)) == (201, 1)  # the other party's
    fault.forward()
    assert waiting.result().status_code == 201
    assert len(upstream.bodies) == 2
    assert put("a").result().status_code == 201  # used once


def test_a_held_answer_is_of_a_request_that_has_arrived(
    proxy: Proxy, upstream: Upstream, put: Put
) -> None:
    fault = proxy.plan(Fault("a", LINE, "hold-after"))
    waiting = put("a")
    assert fault.reached()
    assert upstream.bodies == [BODY]
    assert not waiting.done()
    fault.drop()
    with pytest.raises(httpx.TransportError):
        waiting.result()
    assert fault.statuses == [201]


@pytest.mark.parametrize(("how", "arrived"), [("cut-request", 0), ("cut-answer", 1)])
def test_a_cut_is_an_error_to_the_sender(
    proxy: Proxy, upstream: Upstream, put: Put, how: How, arrived: int
) -> None:
    proxy.plan(Fault("a", LINE, how))
    with pytest.raises(httpx.TransportError):
        put("a").result()
    assert len(upstream.bodies) == arrived
    assert put("a").result().status_code == 201


def test_twice_arrives_twice_and_slow_arrives_whole(
    proxy: Proxy, upstream: Upstream, put: Put
) -> None:
    twice = proxy.plan(Fault("a", LINE, "twice"))
    assert put("a").result().status_code == 201
    assert twice.statuses == [201, 201]
    slow = proxy.plan(Fault("a", LINE, "slow", seconds=0.2))
    assert put("a").result().elapsed.total_seconds() >= 0.2
    assert slow.statuses == [201]
    assert upstream.bodies == [BODY] * 3


def test_an_empty_poll_is_not_the_answer_that_was_meant(proxy: Proxy) -> None:
    fault = proxy.plan(Fault("a", "GET /", "hold-after"))
    assert httpx.get(f"{proxy.url('a')}/empty").status_code == 204
    assert not fault.is_reached


def test_who_is_cut_off_reaches_nobody_until_let_in(
    proxy: Proxy, upstream: Upstream, put: Put
) -> None:
    proxy.cut_off("a")
    with pytest.raises(httpx.TransportError):
        put("a").result()
    assert upstream.bodies == []
    proxy.let_in("a")
    assert put("a").result().status_code == 201


def test_requests_go_to_the_upstreams_in_turn(proxy: Proxy, upstream: Upstream, put: Put) -> None:
    with Upstream() as other:
        proxy.upstreams = [upstream.port, other.port]
        for _ in range(4):
            assert put("a").result().status_code == 201
        assert (len(upstream.bodies), len(other.bodies)) == (2, 2)


def test_only_a_request_with_the_body_that_was_meant(proxy: Proxy) -> None:
    fault = proxy.plan(Fault("a", LINE, "hold-before", body_has=b"second"))
    url = proxy.url("a")
    assert httpx.put(f"{url}/thing", content=b"the first").status_code == 201
    assert not fault.is_reached
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(httpx.put, f"{url}/thing", content=b"the second")
        assert fault.reached()
        fault.drop()
        with pytest.raises(httpx.TransportError):
            sent.result(10)


def test_bodies_that_differ_are_known_apart_and_the_same_twice_is_one(proxy: Proxy) -> None:
    for path, body in (("thing/a", b"1"), ("thing/a", b"1"), ("thing/b", b"1"), ("thing/b", b"2")):
        httpx.put(f"{proxy.url('a')}/{path}", content=body)
    httpx.put(f"{proxy.url('a')}/other", content=b"3")
    assert {path: len(found) for path, found in proxy.put("/thing/").items()} == {
        "/thing/a": 1,
        "/thing/b": 2,
    }
