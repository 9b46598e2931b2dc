"""A lean HTTP/1.1 client: whoever measures a server on the same two cores must cost little.

One request at a time on a connection, connections are kept, bodies are known beforehand.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RequestFailed(RuntimeError):
    """An answer that the benchmark did not expect."""


def expect(answer: Answer, *statuses: int) -> Answer:
    if answer.status not in statuses:
        raise RequestFailed(f"status {answer.status}, expected {statuses}: {answer.body[:300]!r}")
    return answer


@dataclass
class Http:
    """Connections to one port, as many as there are requests at once; use it in ``async with``."""

    port: int
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def request(
        self,
        method: str,
        path: str,
        token: str | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {_HOST}", f"Content-Length: {len(body)}"]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        while self._idle:
            reader, writer = self._idle.pop()
            if reader.at_eof() or writer.is_closing():  # the server closes what was idle
                writer.close()
                continue
            try:
                return await self._exchange(reader, writer, head, body)
            except (ConnectionError, asyncio.IncompleteReadError):
                continue  # it closed this one just now; every request here may be repeated
        return await self._exchange(*await asyncio.open_connection(_HOST, self.port), head, body)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, body: bytes
    ) -> Answer:
        try:
            writer.write(head)
            if body:
                writer.write(body)
            await writer.drain()
            status, length, keep = await _head(reader)
            content = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if keep:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return Answer(status, content)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _reader, writer in self._idle:
            writer.close()
        self._idle.clear()


async def _head(reader: asyncio.StreamReader) -> tuple[int, int, bool]:
    """(status, bytes of the body, whether the connection stays)."""
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *rest = text.split("\r\n")
    fields = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)
    }
    if "transfer-encoding" in fields:
        raise RequestFailed("chunked answers are not read here")
    keep = fields.get("connection", "").lower() != "close"
    return int(first.split(" ", 2)[1]), int(fields.get("content-length", "0")), keep
