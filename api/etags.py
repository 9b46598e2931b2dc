"""Entity tags (RFC 9110, 8.8.3 and 13.1.2)."""

from __future__ import annotations


def has(if_none_match: str | None, etag: str) -> bool:
    """Does the header name this tag, weakly compared, or any at all?"""
    named = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    return etag in named or "*" in named
