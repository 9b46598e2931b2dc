"""Downloads: conditional, and continued after a break."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Response

from api import etags
from api.problems import RangeNotSatisfiable
from core.wire.messages import CONTENT_TYPE_TENSORS

_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")
NOT_200: dict[int | str, dict[str, Any]] = {
    206: {"description": "The range that was asked for."},
    304: {"description": "The caller has these bytes already."},
}


@dataclass(frozen=True)
class Conditions:
    """Headers ``Range``, ``If-Range`` and ``If-None-Match`` as they were sent."""

    range: str | None
    if_range: str | None
    if_none_match: str | None

    def know(self, etag: str) -> bool:
        """Does the caller have these bytes already?"""
        return etags.has(self.if_none_match, etag)

    def wanted(self, etag: str, size: int) -> tuple[int, int] | None:
        """(first, last) of the bytes asked for, or None for all. Raises ``RangeNotSatisfiable``."""
        if self.if_range is None or self.if_range.strip() == etag:
            return parse_range(self.range, size)
        return None


async def _conditions(
    range_header: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range")] = None,
    if_none_match: Annotated[str | None, Header(alias="If-None-Match")] = None,
) -> Conditions:
    return Conditions(range_header, if_range, if_none_match)


Sent = Annotated[Conditions, Depends(_conditions)]


async def answered(
    digest: str, sent: Conditions, headers: Mapping[str, str], read: Callable[[], Awaitable[bytes]]
) -> Response:
    """The bytes of this digest, which is their ETag: all, a range of them, or 304 without reading
    them. Raises ``RangeNotSatisfiable``.
    """
    etag = f'"{digest}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", **headers}
    if sent.know(etag):
        return Response(status_code=304, headers=headers)
    body = await read()
    wanted = sent.wanted(etag, len(body))
    if wanted is None:
        return Response(body, 200, headers, CONTENT_TYPE_TENSORS)
    start, end = wanted
    headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
    return Response(body[start : end + 1], 206, headers, CONTENT_TYPE_TENSORS)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first, last) of a single range, or None for the whole (also for what RFC 9110 lets a
    server ignore: other units, several ranges). Raises ``RangeNotSatisfiable``.
    """
    match = _RANGE.match(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise RangeNotSatisfiable(f"the object has {size} bytes", field="Range")
        return size - length, size - 1
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiable(f"the object has {size} bytes", field="Range")
    return start, end
