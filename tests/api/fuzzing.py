"""Schemathesis against the real coordinator: a server on a port with a world in its database, and
runs of the engine with the token of one scope.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import schemathesis
import uvicorn
from schemathesis import Response
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from api import examples
from api.app import create_app
from api.cli import uvicorn_options
from api.config import Settings
from core.wire.messages import CONTENT_TYPE_TENSORS
from core.wire.secure import CONTENT_TYPE_MASKED
from tests.api.support import SPACE, Coordinator

T = TypeVar("T")
# What pydantic says of a value that a schema could have refused. Other sentences are those of our
# own validators: relations between fields, which no JSON Schema tells.
_OF_A_SCHEMA = re.compile(
    r"^(Input|String|List|Tuple|Dictionary|Value|Data|Set) should"
    r"|^Field required|^Extra inputs|^Unable"
)
_NO_SCHEMA = re.compile(
    r"less than 9223372036854775808"  # the document's bound is rounded to float64
)
# An event stream has no end: its first event is looked at, which comes at once.
_STREAM_EVENTS = 1
_PART = re.compile(r"\{[^}]*\}")
_SHOWN = 1_500  # characters of one finding


class Server:
    """The application served by uvicorn in a thread, with a driver in the same event loop."""

    def __init__(self, settings: Settings, port: int) -> None:
        self.app = create_app(settings, background=False)
        options = {**uvicorn_options(settings), "host": "127.0.0.1", "port": port}
        self._server = uvicorn.Server(uvicorn.Config(self.app, **options))
        self.url = f"http://127.0.0.1:{port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.coordinator: Coordinator

    def _serve(self) -> None:
        self._loop.run_until_complete(self._server.serve())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def __enter__(self) -> Server:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            self._thread.join(0.01)
        transport = httpx.ASGITransport(self.app)
        http = httpx.AsyncClient(transport=transport, base_url="http://api.test")
        self.coordinator = Coordinator(self.app, http)
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.coordinator.http.aclose())
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"
        self._loop.close()


async def furnish(coordinator: Coordinator) -> None:
    """A world in which most operations have something to do, under the names of the document's
    examples: a finished run with a model, one in mid-round with an order out, one that is only
    planned, managed clients, jobs, a receipt.
    """
    named = {"space": examples.SPACE["name"]}
    await coordinator.ok("POST", "/v1/spaces", json={**SPACE, "name": named["space"]})
    await coordinator.enrol("site-a", "site-b", "site-c", **named)
    await coordinator.enrol("managed-a", "managed-b", managed=True, **named)
    finished = await coordinator.run("site-a", "site-b", name="digits-1", joining="open", **named)
    await coordinator.finish(finished, "site-a", "site-b")
    await coordinator.run("site-a", "site-b", name="under-way", **named)
    assert await coordinator.poll("site-a") is not None
    await coordinator.run("managed-a", "managed-b", name="managed", **named)
    await coordinator.run("site-a", "site-b", name="planned", start=False, approved=False, **named)
    await coordinator.ok("POST", "/v1/synthesize", json={"run": "digits-1", "n": 4})
    made = {"run": "digits-1", "n": 50, "format": "csv"}
    await coordinator.ok("POST", "/v1/synthesis-jobs", json=made)
    await coordinator.ok("POST", f"/v1/runs/{finished['id']}/rounds/0/replay")
    await coordinator.sweep()


async def newcomer(coordinator: Coordinator) -> str:
    """The token of a new client that holds an order of a run under way."""
    name, other = f"new-{uuid4().hex[:8]}", f"peer-{uuid4().hex[:8]}"
    space = {"space": examples.SPACE["name"]}
    await coordinator.enrol(name, other, **space)
    await coordinator.run(name, other, name=f"run-of-{name}", **space)
    assert await coordinator.poll(name) is not None
    return coordinator.tokens[name]


def excused(
    check: str, operation: str, message: str, answer: Response | None, paths: Collection[str]
) -> str:
    """The reason why a finding is none; empty if there is no reason. ``paths``: all documented."""
    if check == "positive_data_acceptance" and answer is not None:
        if answer.status_code == 406:
            return "which media types an Accept header may list is beyond its schema (a string)"
        body = answer.json()
        errors = body.get("errors")
        if errors is None and body.get("field"):
            return "the world refuses, not the schema: a name that nothing has, a full budget"
        if errors and operation in ("GET /synthesize", "GET /v1/synthesize"):
            return "the form by URL takes text and reads it as the JSON form's numbers and maps"
        told = [one["message"] for one in errors or [{"message": body["detail"]}]]
        if all(_NO_SCHEMA.search(one) or not _OF_A_SCHEMA.search(one) for one in told):
            return "a relation between fields, or a text that cannot be stored"
    if check == "negative_data_rejection" and "in body" in message and "Incorrect type" in message:
        return "true and '3' are read as numbers where a number is asked for, and stored as numbers"
    if check in ("unsupported_method", "allow_header_conformance"):
        path = operation.partition(" ")[2]
        if any(re.fullmatch(_PART.sub("[^/]+", one), path) for one in paths if one != path):
            return "GET of this path is that of /{id} beside it, with an id that is none (422)"
    if check == "use_after_free" and operation.startswith("GET /v1/synthesis-jobs"):
        return "DELETE gives the job up; its row stays and says so"
    return ""


@dataclass
class Findings:
    """What one run of the engine has seen."""

    paths: Collection[str]
    cases: Counter[str] = field(default_factory=Counter)  # by phase
    statuses: Counter[int] = field(default_factory=Counter)
    operations: set[str] = field(default_factory=set)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)  # by reason

    def told(self) -> str:
        return "\n\n".join([*self.failures.values(), *self.errors])

    def add(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        self.cases[event.phase.value] += len(recorder.interactions)
        for case_id, exchange in recorder.interactions.items():
            self.operations.add(recorder.cases[case_id].value.operation.label)
            self.statuses[exchange.response.status_code if exchange.response else 0] += 1
        for case_id, checks in recorder.checks.items():
            for check in checks:
                if check.failure_info is None:
                    continue
                failure = check.failure_info.failure
                case = recorder.cases[case_id].value
                exchange = recorder.interactions.get(case_id)
                answer = None if exchange is None else exchange.response
                label, message = case.operation.label, failure.message
                if reason := excused(check.name, label, message, answer, self.paths):
                    self.excused[reason] += 1
                    continue
                key = (check.name, f"{case.operation.label} {failure.title}")
                told = f"{check.name}: {case.operation.label}: {failure.title}: {failure.message}"
                told += f"\n{check.failure_info.code_sample}"
                if answer is not None:
                    told += f"\n-> {answer.status_code} {answer.content[:300]!r}"
                self.failures.setdefault(key, told[:_SHOWN])


def run(
    server: Server,
    token: str,
    *,
    seed: int,
    most: int,
    phases: tuple[str, ...],
    operations: list[str],
    seconds: int | None = None,
) -> Findings:
    """One run of the engine: the operations with these ids, in these phases."""
    config = SchemathesisConfig(seed=seed, max_time=seconds)
    project = config.projects.default
    project.update(
        base_url=server.url,
        headers={"Authorization": f"Bearer {token}"},
        continue_on_failure=True,
        request_timeout=20,
    )
    project.max_stream_events = _STREAM_EVENTS
    project.generation.update(max_examples=most, no_shrink=True, database="none")
    project.phases.update(phases=list(phases))
    schema = schemathesis.openapi.from_dict(server.app.openapi(), config=config)
    schema = schema.include(operation_id=operations)
    found = Findings(schema.raw_schema["paths"])
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            found.add(event)
        elif isinstance(event, events.NonFatalError):
            found.errors.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            raise event.exception
    return found


@contextmanager
def furnished(settings: Settings, port: int) -> Iterator[Server]:
    with Server(settings, port) as server:
        server.do(furnish(server.coordinator))
        yield server


@schemathesis.serializer(CONTENT_TYPE_TENSORS, CONTENT_TYPE_MASKED)
def _tensors(_: Any, value: Any) -> bytes:
    """What is generated for an update's body: bytes, or whatever else turned into some."""
    return bytes(value) if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
