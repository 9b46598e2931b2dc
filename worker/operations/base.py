"""What all operations share: the request, its answer as JSON, and whether anybody is there."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from worker.answers import ONCE, Answer, JsonObject, Retry, Timeouts
from worker.errors import UnexpectedAnswer


class Operations(ABC):
    """Operations over ``_send`` and ``_timeouts`` of the class that knows the transport."""

    _timeouts: Timeouts

    @abstractmethod
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
        """One request, retried as ``retry`` says. Raises a ``ClientError``."""

    def _object(self, method: str, path: str, **how: Any) -> JsonObject:
        answer = self._send(method, path, **how)
        try:
            value = json.loads(answer.content)
        except ValueError as error:
            raise UnexpectedAnswer(f"{answer.where}: the answer is not JSON") from error
        if not isinstance(value, dict):
            raise UnexpectedAnswer(f"{answer.where}: the answer is not a JSON object")
        return value

    # --- health ---

    def alive(self) -> JsonObject:
        return self._object("GET", "/healthz", retry=ONCE)

    def clock(self) -> datetime | None:
        """The coordinator's time, to the second; None if neither it nor a proxy says so."""
        said = self._send("GET", "/healthz", retry=ONCE).headers.get("date", "")
        try:
            return parsedate_to_datetime(said)
        except ValueError:
            return None

    def ready(self) -> JsonObject:
        return self._object("GET", "/readyz", retry=ONCE)


def path_part(value: str) -> str:
    """One path segment: an id from the other side can never reach into another path."""
    if value in ("", ".", ".."):
        raise UnexpectedAnswer(f"{value!r} is not an id")
    return quote(value, safe=":")


def json_body(value: BaseModel | Mapping[str, Any]) -> JsonObject:
    if isinstance(value, BaseModel):
        dumped: JsonObject = value.model_dump(mode="json")
        return dumped
    return dict(value)
