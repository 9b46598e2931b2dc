"""A caller that reads answers of any length and keeps none of them: it must cost little."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass

_PIECE = 1 << 20
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Read:
    """One answer: its size, and seconds from the request to its first and its last byte."""

    bytes: int
    first_s: float
    seconds: float


class Caller:
    """One connection to the coordinator, kept."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        self._token = token

    def synthesise(self, request: dict[str, object]) -> Read:
        """One answer. A connection that the server closed, because it was idle, is opened again."""
        try:
            return self._synthesise(request)
        except (ConnectionError, http.client.RemoteDisconnected):
            self._connection.close()
            return self._synthesise(request)

    def _synthesise(self, request: dict[str, object]) -> Read:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        began = time.perf_counter()
        self._connection.request("POST", "/v1/synthesize", json.dumps(request), headers)
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}: {answer.read()[:300]!r}")
        piece = answer.read(1)
        first = time.perf_counter() - began
        size, buffer = len(piece), bytearray(_PIECE)
        while (count := answer.readinto(buffer)) > 0:
            size += count
        return Read(size, first, time.perf_counter() - began)

    def health(self) -> float:
        """Seconds of one health check."""
        began = time.perf_counter()
        self._connection.request("GET", "/healthz")
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status} of /healthz")
        return time.perf_counter() - began

    def close(self) -> None:
        self._connection.close()
