"""What answers and failures of HTTP mean, as types; how patient a request is."""

from __future__ import annotations

import math
from collections.abc import Generator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx

from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER, SPOKEN, Versions
from core.wire.protocol import read as versions
from worker.answers import Retry, Timeouts
from worker.credentials import TokenSource, checked
from worker.errors import ApiProblem, NotNow, UnexpectedAnswer, Unreachable

PROBLEM = "application/problem+json"
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
