"""Lists of the coordinator, page after page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from worker.answers import JsonObject


def every(page_of: Callable[..., JsonObject], **query: Any) -> Iterator[JsonObject]:
    """All items of a list."""
    while True:
        page = page_of(**query)
        yield from page["items"]
        if page["next"] is None:
            return
        query["after"] = str(page["next"])
