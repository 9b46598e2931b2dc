"""An HTTP/1.1 proxy on loopback that a test can tell to misbehave at one chosen request.

It stands between the coordinator and those who work for it, one port for each of them, so a
"moment" of the fault matrix is a point of the protocol and not a guess about time. One request a
connection, on both sides: nothing of an earlier request can change what happens to a later one.

A fault is planned before its request comes and is used once. ``hold`` stops a request before the
coordinator sees it, or its answer before the sender sees it, until the test says what to do.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

POLL = r"GET /v1/clients/[^/]+/work"
PLANS = r"GET /v1/plans"
CLAIM_WORK = r"POST /v1/work/[^/]+/claim"
RENEW_WORK = r"POST /v1/work/[^/]+/renew"
OBJECT = r"GET /v1/objects/"
PUT_UPDATE = r"PUT /v1/runs/[^/]+/rounds/[0-9]+/updates/"
PUT_STEP = r"PUT /v1/secure-steps/"
CLAIM_JOB = r"POST /v1/jobs/[^/]+/claim"
COMPLETE_JOB = r"POST /v1/jobs/[^/]+/complete"

How = Literal["hold-before", "hold-after", "cut-request", "cut-answer", "slow", "twice"]
_OF_ANSWERS = ("hold-after", "cut-answer")
_PIECES = 24  # a slow body comes in so many
_START_S = 10.0


@dataclass(frozen=True)
class Request:
    """One request as it came: ``head`` ends with the empty line."""

    party: str
    method: str
    path: str
    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """What shall happen to the next request of ``party`` that ``pattern`` describes."""

    party: str
    pattern: str
    how: How
    seconds: float = 0.0  # how long a slow body takes
    path_has: str = ""
    body_has: bytes = b""
    answer_has: bytes = b""  # for what is done to answers: only to one with these bytes
    statuses: list[int] = field(default_factory=list)  # of the coordinator's answers, in order
    line: str = ""  # method and path of the request that was caught
    _reached: threading.Event = field(default_factory=threading.Event, repr=False)
    _decided: threading.Event = field(default_factory=threading.Event, repr=False)
    _drop: bool = False

    def reached(self, seconds: float = 30.0) -> bool:
        """Wait until the request (or its answer) is in the proxy's hands."""
        return self._reached.wait(seconds)

    @property
    def is_reached(self) -> bool:
        return self._reached.is_set()

    def forward(self) -> None:
        """Let what is held go on its way."""
        self._decided.set()

    def drop(self) -> None:
        """Close the connection instead: what is held never arrives."""
        self._drop = True
        self._decided.set()

    def _fits(self, request: Request) -> bool:
        return (
            request.party == self.party
            and re.match(self.pattern, request.line) is not None
            and self.path_has in request.path
            and self.body_has in request.body
        )

    async def _held(self) -> bool:
        """False if it shall be dropped."""
        self._reached.set()
        await asyncio.to_thread(self._decided.wait)
        return not self._drop


class Dropped(Exception):
    """The connection is closed without (the rest of) an answer."""


class Proxy:
    """Runs in a thread of its own. ``upstreams`` are ports of coordinators, asked in turn."""

    def __init__(self, parties: Sequence[str], upstreams: Sequence[int]) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []  # whose request has not come yet
        self._caught: list[Fault] = []
        self._cut_off: set[str] = set()
        self._upstreams = list(upstreams)
        self._turn = 0
        self._sockets = {party: _listening() for party in parties}
        self._seen: list[tuple[str, str, int]] = []
        self._put: dict[str, set[str]] = defaultdict(set)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._up = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._up.wait(_START_S):
            raise RuntimeError("the fault proxy did not start")
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)
        for each in self._sockets.values():
            each.close()

    def url(self, party: str) -> str:
        return f"http://127.0.0.1:{self._sockets[party].getsockname()[1]}"

    @property
    def upstreams(self) -> list[int]:
        with self._lock:
            return list(self._upstreams)

    @upstreams.setter
    def upstreams(self, ports: Sequence[int]) -> None:
        with self._lock:
            self._upstreams = list(ports)

    def plan(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget faults whose request has not come, drop what is held, let everybody through."""
        with self._lock:
            caught, self._caught, self._faults = self._caught, [], []
            self._cut_off.clear()
        for fault in caught:
            fault.drop()

    def cut_off(self, party: str) -> None:
        """Every connection of this party is closed without an answer, until ``let_in``."""
        with self._lock:
            self._cut_off.add(party)

    def let_in(self, party: str) -> None:
        with self._lock:
            self._cut_off.discard(party)

    def seen(self, party: str, pattern: str) -> list[int]:
        """Statuses of the coordinator's answers to such requests, in the order they came."""
        with self._lock:
            return [
                status
                for who, line, status in self._seen
                if who == party and re.match(pattern, line)
            ]

    def put(self, part: str) -> Mapping[str, set[str]]:
        """SHA-256 of every body that was PUT, by path, for paths with ``part``; whether or not the
        coordinator has seen it.
        """
        with self._lock:
            return {path: set(found) for path, found in self._put.items() if part in path}

    # --- inside ---

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def start() -> None:
            for party, listener in self._sockets.items():

                async def serve(
                    reader: asyncio.StreamReader,
                    writer: asyncio.StreamWriter,
                    party: str = party,
                ) -> None:
                    await self._serve(party, reader, writer)

                await asyncio.start_server(serve, sock=listener, limit=2**20)
            self._up.set()

        self._loop.run_until_complete(start())
        self._loop.run_forever()
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    async def _serve(
        self, party: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # The loop itself holds tasks weakly, and one that is held here for long would be collected.
        if (task := asyncio.current_task()) is not None:
            self._keep(task)
        try:
            request = await _read_request(party, reader)
            self._note(request)
            fault = self._take(request, before=True)
            work = asyncio.create_task(self._answer(request, fault))
            self._keep(work)
            if fault is None:
                await _unless_gone(work, reader)
            writer.write(await work)
            await writer.drain()
        except (OSError, EOFError, Dropped, asyncio.CancelledError):
            pass  # to the sender: a connection that was closed
        finally:
            writer.close()

    def _note(self, request: Request) -> None:
        if request.method == "PUT":
            with self._lock:
                self._put[request.path].add(hashlib.sha256(request.body).hexdigest())

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take(self, request: Request, *, before: bool, answer: bytes = b"") -> Fault | None:
        """The first fault planned for this request: for what is done to it, or to its answer."""
        with self._lock:
            for fault in self._faults:
                meant = before != (fault.how in _OF_ANSWERS) and fault.answer_has in answer
                if meant and fault._fits(request):
                    self._faults.remove(fault)
                    self._caught.append(fault)
                    fault.line = request.line
                    return fault
        return None

    async def _answer(self, request: Request, fault: Fault | None) -> bytes:
        if fault is None:
            return await self._after(request, await self._forward(request))
        if fault.how == "hold-before":
            if not await fault._held():
                raise Dropped
            return await self._forward(request, fault)
        fault._reached.set()
        if fault.how == "cut-request":
            await self._forward(request, fault, keep=len(request.body) // 2)
            raise Dropped
        if fault.how == "slow":
            return await self._forward(request, fault, seconds=fault.seconds)
        both = [self._forward(request, fault), self._forward(request, fault)]
        return (await asyncio.gather(*both))[0]

    async def _after(self, request: Request, answer: bytes) -> bytes:
        """What is done to answers. An empty poll is none: the next one is meant."""
        status = _status(answer)
        empty = request.method == "GET" and status == 204
        fault = None if empty else self._take(request, before=False, answer=answer)
        if fault is None:
            return answer
        fault.statuses.append(status)
        if fault.how == "cut-answer":
            fault._reached.set()
            return answer[: len(answer) // 2]
        if not await fault._held():
            raise Dropped
        return answer

    async def _forward(
        self,
        request: Request,
        fault: Fault | None = None,
        *,
        keep: int | None = None,
        seconds: float = 0.0,
    ) -> bytes:
        """The coordinator's answer; with ``keep``, the connection is closed after so many bytes."""
        with self._lock:
            if request.party in self._cut_off:
                raise Dropped
            self._turn += 1
            port = self._upstreams[self._turn % len(self._upstreams)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request.head)
            body = request.body if keep is None else request.body[:keep]
            pieces = _PIECES if seconds else 1
            size = -(-len(body) // pieces)
            for start in range(0, len(body), max(size, 1)):
                writer.write(body[start : start + size])
                await writer.drain()
                if seconds:
                    await asyncio.sleep(seconds / pieces)
            if keep is not None:
                await writer.drain()
                return b""
            answer = await reader.read()  # until the coordinator closes: we asked it to
        finally:
            writer.close()
        if not answer.partition(b"\r\n\r\n")[1]:
            raise Dropped  # it died before it answered
        status = _status(answer)
        if fault is not None:
            fault.statuses.append(status)
        with self._lock:
            self._seen.append((request.party, request.line, status))
        return answer


async def _unless_gone(work: asyncio.Future[bytes], reader: asyncio.StreamReader) -> None:
    """A sender that has died must not leave its long poll behind: it would be handed work that
    nobody receives.
    """
    gone = asyncio.ensure_future(reader.read(1))
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not work.done():
        work.cancel()


def _listening() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    made.listen(128)
    return made


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def _read_request(party: str, reader: asyncio.StreamReader) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head[:-4].split(b"\r\n")
    method, path, _ = lines[0].decode("latin-1").split(" ")
    kept, length = [lines[0]], 0
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        lower = name.strip().lower()
        if lower == b"transfer-encoding":
            raise Dropped  # our clients always declare a length
        if lower == b"content-length":
            length = int(value)
        if lower != b"connection":
            kept.append(line)
    kept.append(b"connection: close")
    body = await reader.readexactly(length) if length else b""
    return Request(party, method, path, b"\r\n".join(kept) + b"\r\n\r\n", body)
