"""What a check of ``fedhypevae doctor`` is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """``name``: what was looked at. ``mend``: what to do; empty where all is well."""

    name: str
    level: Level
    message: str
    mend: str = ""


@dataclass(frozen=True)
class Check:
    """``look`` gives one finding or more. It may raise: that becomes a finding, too."""

    name: str
    look: Callable[[], Iterator[Finding]]


def ok(name: str, message: str) -> Finding:
    return Finding(name, "ok", message)


def warn(name: str, message: str, mend: str) -> Finding:
    """Works, but not well, or not for long."""
    return Finding(name, "warn", message, mend)


def failed(name: str, message: str, mend: str) -> Finding:
    return Finding(name, "fail", message, mend)
