"""How requests travel: retries, the common version of the protocol, what answers mean as types.

Connection errors, 502, 503, 504 and 429 (``Retry-After`` is honoured) are repeated with exponential
back-off and jitter; any other 4xx is final. Tokens never appear in an exception, a log or a repr.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import httpx
import stamina
from pydantic import BaseModel

from core import tracing
from core.wire.messages import LEASE_HEADER
from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER, SPOKEN, Versions
from core.wire.protocol import read as versions
from worker.answers import Answer, Retry, Timeouts
from worker.credentials import TokenSource, checked
from worker.errors import UNSUPPORTED, ApiProblem, NotNow, UnexpectedAnswer, Unreachable
from worker.operations.base import json_body

T = TypeVar("T")

PROBLEM = "application/problem+json"
_VERSION = metadata.version("fedhypevae")
_UNAUTHENTICATED = 401
_LONGEST_RETRY_AFTER_S = 120.0
_OUR_FAULT = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
_NOT_NOW = frozenset({429, 502, 503, 504})


class Bearer(httpx.Auth):
    """The token as its source has it for each request. One that was replaced while a request was
    on its way is no failure: the request is sent once more.
    """

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        sent = checked(self._source())
        request.headers["Authorization"] = f"Bearer {sent}"
        answer = yield request
        if answer.status_code != _UNAUTHENTICATED:
            return
        now = checked(self._source())
        if now != sent:
            request.headers["Authorization"] = f"Bearer {now}"
            yield request


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


class Transport:
    """Requests to one coordinator with one token. Close it, or use it in ``with``."""

    def __init__(
        self,
        base_url: str,
        token: str | TokenSource | None,
        *,
        retry: Retry | None = None,
        timeouts: Timeouts | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._retry = retry or Retry()
        self._timeouts = timeouts or Timeouts()
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
        return f"{type(self).__name__}({self.base_url!r})"

    def close(self) -> None:
        self._http.close()

    @property
    def protocol(self) -> int:
        """The version that the coordinator spoke last; our newest one before its first answer."""
        return self._protocol

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


def timeout_of(timeouts: Timeouts, read_s: float | None = None) -> httpx.Timeout:
    return httpx.Timeout(
        connect=timeouts.connect,
        read=timeouts.read if read_s is None else read_s,
        write=timeouts.write,
        pool=timeouts.connect,
    )


def worth_another_try(error: Exception, policy: Retry) -> bool | float:
    """Retry only what says "not now"; wait as long as the coordinator asked. If it asked for longer
    than this caller is patient, the caller is told now and not after half of it.
    """
    if not isinstance(error, Unreachable):
        return False
    asked = error.retry_after_s
    if asked is None:
        return True
    return asked if asked <= policy.total_s else False


def raise_unreachable(base_url: str, error: httpx.RequestError) -> NoReturn:
    if not isinstance(error, httpx.TransportError) or isinstance(error, _OUR_FAULT):
        # Without the cause: it may quote a header, hence the token.
        raise UnexpectedAnswer(
            f"cannot exchange a request with {base_url!r} ({type(error).__name__}).",
            mend="Set FHV_COORDINATOR_URL to http(s)://host:port and check FHV_TOKEN.",
        ) from None
    raise Unreachable(f"no answer from {base_url} ({type(error).__name__}).") from error


def raise_for(answer: httpx.Response) -> NoReturn:
    """Map an answer that is not a success to a typed error."""
    status, where = answer.status_code, f"{answer.request.method} {answer.request.url.path}"
    problem = _problem(answer)
    if status in _NOT_NOW:
        raise NotNow(where, status, problem, _retry_after(answer.headers.get("Retry-After")))
    if not problem:
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        raise UnexpectedAnswer(
            f"{where}: answer {status} of type {kind!r} is no problem document of a coordinator.",
            mend="Check FHV_COORDINATOR_URL and what proxies stand before it.",
        )
    raise ApiProblem(
        problem=problem["code"],
        status=status,
        detail=str(problem.get("detail") or problem.get("title") or ""),
        field=problem.get("field"),
        mend=problem.get("mend"),
        errors=problem.get("errors") or (),
        request_id=answer.headers.get("X-Request-ID"),
    )


def _problem(answer: httpx.Response) -> dict[str, Any]:
    """The answer's problem document; empty if it is none."""
    if answer.headers.get("Content-Type", "").partition(";")[0].strip() != PROBLEM:
        return {}
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("code"), str) else {}


def _retry_after(value: str | None) -> float | None:
    """Seconds from either form of the header; bounded, None if absent or unreadable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)


def spoken_by(answer: httpx.Response) -> int | None:
    """The newest version that both sides speak, by the answer's headers."""
    try:
        theirs = versions(answer.headers.get(PROTOCOL_HEADER), answer.headers.get(RANGE_HEADER))
    except ValueError:
        theirs = None
    return SPOKEN.common(theirs or Versions(SPOKEN.oldest, SPOKEN.oldest))
