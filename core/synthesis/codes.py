"""The codes that a request's rows are made under."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """Its ``domain`` (the client, "neutral" or "blend"), the mixture that it is, its share of the
    rows, and an id that two codes share only if they are equal.
    """

    domain: str
    mixture: str | dict[str, float]
    share: float
    id: str
