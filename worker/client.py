"""The client of a coordinator: every operation, objects with a local cache, and the feed of a run.

Workers, site agents and the commands use it, and so do the demo and the tests. Requests are
idempotent by design of the protocol, and an update is resent as the very same bytes under the same
id. Retries and errors are those of ``worker.transport``; the operations are in
``worker.operations``, by audience.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import httpx

from worker.answers import Retry, StreamedAnswer, Timeouts
from worker.cache import ObjectCache
from worker.credentials import TokenSource
from worker.errors import DownloadCorrupt, Unreachable
from worker.feed import END, SILENCE_S, RunEvent, parse
from worker.operations.administration import Administration
from worker.operations.base import path_part
from worker.operations.rows import Rows
from worker.operations.runs import Runs
from worker.operations.sites import SiteWork
from worker.operations.workers import Jobs
from worker.transport import Transport, raise_for, raise_unreachable, timeout_of

__all__ = ["CoordinatorClient", "Retry", "Timeouts"]

MAX_DOWNLOAD = 1 << 30  # bytes: refuses an endless answer when the size is not known beforehand


class CoordinatorClient(Transport, Administration, Runs, Rows, SiteWork, Jobs):
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
        super().__init__(base_url, token, retry=retry, timeouts=timeouts, transport=transport)
        self._cache = cache

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
