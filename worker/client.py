"""Every HTTP operation of the coordinator, typed. Only this file and its helper
``worker.transport`` import httpx.

Workers and site agents use it, and so do the demo and the tests (operator and data-scientist
calls). One rule for retries: connection errors, 502, 503, 504 and 429 (``Retry-After`` is
honoured) are repeated with exponential back-off and jitter; any other 4xx is final and raised at
once as ``ApiProblem``. Requests are idempotent by design of the protocol, and an update is resent
as the very same bytes under the same id. Tokens never appear in an exception, a log or a repr.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import httpx
import stamina
from pydantic import BaseModel

from core import tracing
from core.wire.messages import LEASE_HEADER
from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER, SPOKEN
from worker.answers import Answer, Retry, StreamedAnswer, Timeouts
from worker.cache import ObjectCache
from worker.credentials import TokenSource, checked
from worker.errors import (
    UNSUPPORTED,
    ApiProblem,
    DownloadCorrupt,
    Unreachable,
)
from worker.feed import END, SILENCE_S, RunEvent, parse
from worker.file_operations import FileOperations
from worker.operations import json_body, path_part
from worker.transport import (
    Bearer,
    raise_for,
    raise_unreachable,
    spoken_by,
    timeout_of,
    worth_another_try,
)

__all__ = ["CoordinatorClient", "Retry", "Timeouts"]

T = TypeVar("T")

_VERSION = metadata.version("fedhypevae")
MAX_DOWNLOAD = 1 << 30  # bytes: refuses an endless answer when the size is not known beforehand


class CoordinatorClient(FileOperations):
    """A blocking client of one coordinator with one token. Close it, or use it in ``with``."""

    def __init__(
        self,
        base_url: str,
        token: str | TokenSource | None,
        *,
        retry: Retry | None = None,
        timeouts: Timeouts | None = None,
        cache: ObjectCache | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._retry = retry or Retry()
        self._timeouts = timeouts or Timeouts()
        self._cache = cache
        self._protocol = SPOKEN.newest
        headers = {"User-Agent": f"fedhypevae-client/{_VERSION}", RANGE_HEADER: str(SPOKEN)}
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=headers,
            auth=_bearer(token),
            timeout=timeout_of(self._timeouts),
            transport=transport,
            follow_redirects=False,  # a redirect must never carry the token elsewhere
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CoordinatorClient({self.base_url!r})"

    def close(self) -> None:
        self._http.close()

    @property
    def protocol(self) -> int:
        """The version that the coordinator spoke last; our newest one before its first answer."""
        return self._protocol

    # --- objects ---

    def download(self, digest: str, *, size: int | None = None) -> bytes:
        """A public object, verified; from the local cache if it is there."""
        if self._cache is not None and (cached := self._cache.get(digest)) is not None:
            return cached
        body = self._retrying(f"GET object {digest}", lambda: self._fetch(digest, size))
        if self._cache is not None:
            self._cache.put(digest, body)
        return body

    def _fetch(self, digest: str, size: int | None) -> bytes:
        limit = MAX_DOWNLOAD if size is None else min(size, MAX_DOWNLOAD)
        body, mac = bytearray(), hashlib.sha256()
        url, headers = f"/v1/objects/{path_part(digest)}", self._versioned({})
        try:
            with self._http.stream("GET", url, headers=headers) as answer:
                if not answer.is_success:
                    answer.read()
                    self._raise_for(answer)
                for chunk in answer.iter_bytes():
                    body += chunk
                    mac.update(chunk)
                    if len(body) > limit:
                        raise DownloadCorrupt(f"object {digest} is longer than its {limit} bytes")
        except httpx.RequestError as error:
            raise_unreachable(self.base_url, error)
        if f"sha256:{mac.hexdigest()}" != digest or (size is not None and len(body) != size):
            raise DownloadCorrupt(f"the bytes received for {digest} are not that object")
        return bytes(body)

    @contextmanager
    def streamed(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        json: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[StreamedAnswer]:
        """An answer whose body is read as it comes. Opening it is retried as every request is; a
        body that breaks off raises ``Unreachable``.
        """

        def opened() -> httpx.Response:
            request = self._http.build_request(
                method,
                path,
                params=params,
                json=json,
                headers=self._versioned(dict(headers or {})),
                timeout=timeout_of(self._timeouts, self._timeouts.slow),
            )
            try:
                answer = self._http.send(request, stream=True)
                if not answer.is_success:
                    with closing(answer):
                        answer.read()
                        self._raise_for(answer)
            except httpx.RequestError as error:
                raise_unreachable(self.base_url, error)
            return answer

        with closing(self._retrying(f"{method} {path}", opened)) as answer:
            found = {name.lower(): value for name, value in answer.headers.items()}
            yield StreamedAnswer(found, self._chunks(answer))

    def _chunks(self, answer: httpx.Response) -> Iterator[bytes]:
        try:
            yield from answer.iter_bytes()
        except httpx.RequestError as error:
            raise_unreachable(self.base_url, error)

    # --- the feed of a run ---

    def follow_run(
        self, run_id: str, *, last_event_id: str | None = None, from_start: bool = False
    ) -> Iterator[RunEvent]:
        """What happens in a run, until its ``end``; reconnects behind the last event.

        Without ``last_event_id`` it begins with where the run stands now (or, ``from_start``, with
        the run's first event). Raises ``Unreachable`` once reconnecting has failed for as long as
        this client is patient; give the last event's id to go on from there.
        """
        last, patience = last_event_id, self._again_and_again()
        while True:
            try:
                for event in self._feed(run_id, last, from_start):
                    patience = self._again_and_again()
                    last = event.id or last
                    yield event
                    if event.kind == END:
                        return
                error = Unreachable(f"{self.base_url} ended the feed before the run has ended.")
            except Unreachable as found:
                error = found
            pause = next(patience, None)
            if pause is None:
                raise error
            time.sleep(max(pause, error.retry_after_s or 0.0))

    def _again_and_again(self) -> Iterator[float]:
        """Pauses between attempts, as this client's retry policy has them."""
        policy, spent = self._retry, 0.0
        for attempt in range(policy.attempts - 1):
            pause = min(policy.first_s * 2.0**attempt, policy.longest_s)
            pause += random.uniform(0.0, policy.jitter_s)  # noqa: S311 (nothing secret in a pause)
            spent += pause
            if spent > policy.total_s:
                return
            yield pause

    def _feed(self, run_id: str, last: str | None, from_start: bool) -> Iterator[RunEvent]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        try:
            with self._http.stream(
                "GET",
                f"/v1/runs/{path_part(run_id)}/events",
                params={"from_start": "true"} if from_start and not last else None,
                headers=headers,
                timeout=timeout_of(self._timeouts, SILENCE_S),
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise_for(answer)
                yield from parse(answer.iter_lines())
        except httpx.RequestError as error:
            raise_unreachable(self.base_url, error)

    # --- transport ---

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | Sequence[str]] | None = None,
        json: BaseModel | Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        lease: str | None = None,
        read_s: float | None = None,
        retry: Retry | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if lease is not None:
            sent[LEASE_HEADER] = lease
        body = None if json is None else json_body(json)

        def once() -> Answer:
            try:
                answer = self._http.request(
                    method,
                    path,
                    params=params,
                    json=body,
                    content=content,
                    headers=self._versioned(sent),
                    timeout=timeout_of(self._timeouts, read_s),
                )
            except httpx.RequestError as error:
                raise_unreachable(self.base_url, error)
            if not answer.is_success:
                self._raise_for(answer)
            self._protocol = spoken_by(answer) or SPOKEN.oldest
            return Answer(
                where=f"{method} {path}",
                status=answer.status_code,
                headers={name.lower(): value for name, value in answer.headers.items()},
                content=answer.content,
            )

        return self._retrying(f"{method} {path}", once, retry)

    def _retrying(self, name: str, once: Callable[[], T], retry: Retry | None = None) -> T:
        policy = self._retry if retry is None else self._retry.at_most(retry)
        attempts = stamina.retry_context(
            on=lambda error: worth_another_try(error, policy),
            attempts=policy.attempts,
            timeout=policy.total_s,
            wait_initial=policy.first_s,
            wait_max=policy.longest_s,
            wait_jitter=policy.jitter_s,
        ).with_name(name, (), {})
        for attempt in attempts:
            with (
                attempt,
                tracing.child(name.split()[0], "client", {"url.path": name.partition(" ")[2]}),
            ):
                return self._in_common_version(once)
        raise AssertionError("a retry context ends with a result or an exception")

    def _in_common_version(self, once: Callable[[], T]) -> T:
        try:
            return once()
        except _OtherVersion:  # the version that both speak is known now
            pass
        try:
            return once()
        except _OtherVersion as again:
            raise again.problem from None

    def _versioned(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {**headers, **tracing.headers(), PROTOCOL_HEADER: str(self._protocol)}

    def _raise_for(self, answer: httpx.Response) -> NoReturn:
        """The answer's problem as an error; a version that is not spoken there is changed first.

        Software of version 1 refuses every other one and names its own in a header. The same
        request is then sent once more; a coordinator that was upgraded is found by its next answer.
        """
        try:
            raise_for(answer)
        except ApiProblem as problem:
            if problem.problem != UNSUPPORTED:
                raise
            common = spoken_by(answer)
            if common is None or common == self._protocol:
                raise
            self._protocol = common
            raise _OtherVersion(problem) from None


def _bearer(token: str | TokenSource | None) -> Bearer | None:
    if not token:
        return None
    if callable(token):
        return Bearer(token)
    text = checked(token)
    return Bearer(lambda: text)


class _OtherVersion(Exception):
    """The coordinator speaks another version than the request, one that is spoken here, too."""

    def __init__(self, problem: ApiProblem) -> None:
        super().__init__(problem.problem)
        self.problem = problem
