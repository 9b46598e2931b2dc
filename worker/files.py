"""A file of synthetic rows, made by a worker: part by part into the object store.

Rows, order and bytes are those of the streamed answer. No more than one part is in memory. Making
it again, here or on another machine of the same kind, gives the same parts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

from core.errors import DomainError
from core.receipts.content import Content
from core.storage import ObjectStore
from core.wire.messages import JobFailure
from core.wire.synthesis import PART_BYTES, FileMade, Part, SynthesisJob
from worker import logs
from worker.client import CoordinatorClient
from worker.errors import ApiProblem, ClientError

_log = logs.get("worker.files")
T = TypeVar("T")

FAILED, STOPPED = "file-failed", "worker-stopped"
_PART_MISSING = "part-missing"
_PATIENCE_S = 300.0
_PAUSE_S = 2.0
_held = ExitStack()


class _Over(Exception):
    """The job is no longer this worker's, or the coordinator stays away."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Stopped(Exception):
    """The worker was told to stop."""


def make_ready() -> None:
    """Import what a file needs; products keep to one thread as long as this process lives."""
    from core.synthesis import sampler  # noqa: F401
    from core.synthesis.one_thread import one_thread

    _held.enter_context(one_thread())


def make(
    job: SynthesisJob, coordinator: CoordinatorClient, store_url: str, *, stop: threading.Event
) -> str:
    """Make and report; what came of it, in a word."""
    log = _log.bind(job_id=job.job_id, format=job.format, rows=job.request.size)
    started = time.monotonic()
    work = _Work(job, coordinator, ObjectStore(store_url), stop)
    try:
        size = work.do()
    except _Over as over:
        log.warning("file_given_up", why=over.why)
        return over.why
    except _Stopped:
        failure = JobFailure(code=STOPPED, detail="the worker was told to stop")
        return _fail(job, coordinator, failure)
    except DomainError as error:
        log.error("file_failed", code=error.code, reason=error.message)
        return _fail(job, coordinator, JobFailure(code=error.code, detail=error.message[:2000]))
    except Exception as error:  # anything else is a fault of this machine or of the software
        log.error("file_failed", code=FAILED, **logs.place_of(error))
        detail = f"{type(error).__name__}; see the log of the synthesis worker"
        return _fail(job, coordinator, JobFailure(code=FAILED, detail=detail))
    log.info("file_made", bytes=size, seconds=round(time.monotonic() - started, 3))
    return "completed"


def _fail(job: SynthesisJob, coordinator: CoordinatorClient, failure: JobFailure) -> str:
    try:
        coordinator.fail_file(job.job_id, job.lease_token, failure)
    except ClientError as error:
        _log.warning("failure_not_reported", job_id=job.job_id, code=error.code)
    return failure.code


class _Work:
    """One attempt."""

    def __init__(
        self,
        job: SynthesisJob,
        coordinator: CoordinatorClient,
        store: ObjectStore,
        stop: threading.Event,
    ) -> None:
        self._job, self._coordinator, self._store, self._stop = job, coordinator, store, stop
        self._rows = 0  # made by now

    def do(self) -> int:
        """The file's size once all is stored and reported."""
        count = size = 0
        for body in parts_of(self._pieces()):
            if self._stop.is_set():
                raise _Stopped
            self._part(count, body)
            count, size = count + 1, size + len(body)
        made = FileMade(parts=count, size=size)
        job = self._job
        self._told(lambda: self._coordinator.complete_file(job.job_id, job.lease_token, made))
        return size

    def _pieces(self) -> Iterator[bytes]:
        from core.synthesis.formats import FORMATS
        from core.synthesis.sampler import Generator

        job = self._job
        frame, weights = self._store.get(job.frame), self._store.get(job.weights)
        generator = Generator.load(frame, weights, job.spec)
        document = generator.document(
            job.request, job.seed, lambda _: job.receipt, self._closed, self._watch
        )
        return FORMATS[job.format].pieces(document)

    def _watch(self, rows: int) -> None:
        self._rows = rows

    def _closed(self, content: Content) -> Mapping[str, Any]:
        job = self._job
        signed = self._told(
            lambda: self._coordinator.close_file(job.job_id, job.lease_token, content)
        )
        dumped: dict[str, Any] = signed.model_dump(mode="json")
        return dumped

    def _part(self, number: int, body: bytes) -> None:
        def store_and_tell() -> None:
            stored = self._store.put(body)
            part = Part(number=number, digest=stored.digest, size=stored.size, rows=self._rows)
            self._coordinator.report_part(self._job.job_id, self._job.lease_token, part)

        self._told(store_and_tell)

    def _told(self, once: Callable[[], T]) -> T:
        """The coordinator's answer, however long it is away (within reason)."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return once()
            except ApiProblem as problem:
                # Bytes of equal parts of other files may be deleted in the moment between.
                if problem.problem != _PART_MISSING and (problem.final or problem.needs_person):
                    raise _Over(problem.problem) from problem
                last = problem.problem
            except ClientError as error:
                last = error.code
            if time.monotonic() > until:
                raise _Over(last)
            if self._stop.wait(_PAUSE_S):
                raise _Stopped


def parts_of(pieces: Iterator[bytes], size: int = PART_BYTES) -> Iterator[bytes]:
    """The same bytes in parts of ``size``, the last one shorter."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)
