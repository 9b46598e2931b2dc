"""Text answers compressed on their way, for callers that ask for it. Tables of binary numbers are
not: noise-like bytes do not get smaller, and Parquet compresses itself.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import AsyncIterator

import pyarrow as pa

_WORTH = ("json", "ndjson", "csv")
_CODINGS = ("zstd", "gzip")  # the faster one first


def coding_of(accept: str | None, kind: str) -> str | None:
    """What `Accept-Encoding` allows and is worth it; None: as it is."""
    if kind not in _WORTH or not accept:
        return None
    allowed = {}
    for part in accept.lower().split(","):
        name, _, parameter = part.strip().partition(";")
        allowed[name.strip()] = parameter.replace(" ", "") not in ("q=0", "q=0.0")
    return next((name for name in _CODINGS if allowed.get(name)), None)


class _Gzip:
    """Level 1: a better one halves the speed for a few per cent."""

    def __init__(self) -> None:
        self._made = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)

    def piece(self, data: bytes) -> bytes:
        return self._made.compress(data) + self._made.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._made.flush(zlib.Z_FINISH)


class _Kept(io.BytesIO):
    """Stays readable when the compressor that writes to it is closed."""

    def close(self) -> None:
        return

    def take(self) -> bytes:
        taken = self.getvalue()
        self.seek(0)
        self.truncate()
        return taken


class _Zstd:
    def __init__(self) -> None:
        self._sink = _Kept()
        self._made = pa.CompressedOutputStream(pa.PythonFile(self._sink, "w"), "zstd")

    def piece(self, data: bytes) -> bytes:
        self._made.write(data)
        self._made.flush()
        return self._sink.take()

    def end(self) -> bytes:
        self._made.close()
        return self._sink.take()


def _maker(coding: str) -> _Gzip | _Zstd:
    return _Gzip() if coding == "gzip" else _Zstd()


def compressed(body: bytes, coding: str) -> bytes:
    maker = _maker(coding)
    return maker.piece(body) + maker.end()


async def compress(pieces: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    """Each piece can be read as soon as it has come."""
    maker = _maker(coding)
    async for piece in pieces:
        yield await asyncio.to_thread(maker.piece, piece)
    yield maker.end()
