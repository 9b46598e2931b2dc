"""A receiver of webhooks: a real HTTP server on loopback that answers what it is told to."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from api.webhooks import kinds
from tests.api.support import Coordinator

Verified = Callable[[dict[str, str], bytes, str], str]


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """``answers``: (status, headers, body) of the next requests, then 204 for ever. While ``hold``
    is not set, answers wait for it.
    """

    url: str
    got: list[Received] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def will_answer(self, *statuses: int, **headers: str) -> None:
        self.answers += [(status, headers, b"") for status in statuses]

    def wait(self, seconds: float = 20.0) -> Received:
        """The next request that nobody has waited for."""
        assert self.came.acquire(timeout=seconds), "nothing came"
        return self.got[-1]


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver("")
    receiver.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.got.append(Received(self.path, headers, body))
            receiver.came.release()
            receiver.hold.wait(30)
            status, more, text = receiver.answers.pop(0) if receiver.answers else (204, {}, b"")
            try:
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                return  # who asked has gone

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        receiver.url = (
            f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}/hooks?room=7"
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.hold.set()
            server.shutdown()
            thread.join(10)


# --- what tests do with webhooks ---


async def made(coordinator: Coordinator, url: str, *events: str) -> dict[str, Any]:
    body = {"url": url, "events": list(events or kinds.KINDS), "label": "test"}
    return dict(await coordinator.ok("POST", "/v1/webhooks", json=body))


async def told(coordinator: Coordinator, kind: str = "client-enrolment-waiting") -> None:
    async with coordinator.ctx.database.write() as session:
        assert await kinds.tell(session, kind, see="/v1/clients")


async def deliveries(
    coordinator: Coordinator, webhook: dict[str, Any], query: str = ""
) -> list[dict[str, Any]]:
    path = f"/v1/webhooks/{webhook['id']}/deliveries{query}"
    return list((await coordinator.ok("GET", path))["items"])
