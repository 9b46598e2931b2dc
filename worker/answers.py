"""Plain values of the HTTP client: how patient it is, and what some operations answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Retry:
    """How long to be patient within one call. ``attempts=1`` means: do not retry."""

    attempts: int = 8
    total_s: float = 60.0
    first_s: float = 0.2
    longest_s: float = 10.0
    jitter_s: float = 0.5

    def at_most(self, other: Retry) -> Retry:
        """This policy, but no more patient than ``other``."""
        return replace(
            self,
            attempts=min(self.attempts, other.attempts),
            total_s=min(self.total_s, other.total_s),
        )


ONCE = Retry(attempts=1)
BRIEFLY = Retry(attempts=3, total_s=3.0)  # where whoever asks comes back by itself
A_WHILE = Retry(attempts=8, total_s=15.0)


@dataclass(frozen=True)
class Timeouts:
    """Seconds. ``read`` and ``write`` are between bytes, not for a whole transfer."""

    connect: float = 5.0
    read: float = 30.0
    write: float = 30.0
    poll_margin: float = 15.0  # how much longer than ``wait`` a long poll may stay silent
    slow: float = 300.0  # answers that are computed while we wait: calibration, synthesis


@dataclass(frozen=True)
class Answer:
    """A successful answer. Header names are lower case."""

    where: str
    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class StreamedAnswer:
    """A successful answer while its body comes, in ``chunks``. Header names are lower case."""

    headers: Mapping[str, str]
    chunks: Iterator[bytes] = field(repr=False)


@dataclass(frozen=True)
class Enrolment:
    """A new client. ``token`` is shown this once; None for managed clients and on replay."""

    client: JsonObject
    token: str | None = field(repr=False)


@dataclass(frozen=True)
class SynthesisedTable:
    """A Parquet answer of ``/v1/synthesize``; its receipt is in the file's metadata."""

    body: bytes = field(repr=False)
    seed: int
    model: str
