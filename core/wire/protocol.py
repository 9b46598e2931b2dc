"""Versions of the language on the wire, and how two sides agree on one.

Every side speaks the newest version and one before it at the least (now all), so that a
coordinator and its sites can be upgraded one after the other, in either order. A run's
specification has a format of its own (``RunSpec.protocol``), which these versions do not touch.

* 1: the long poll for work answers an order, or nothing.
* 2: it may also answer a plan that awaits the site's consent (``core.wire.messages.PlanOffer``).
* 3: it may also answer a step of a secure sum (``core.wire.secure.SumStep``).

A caller names the version that it would use in ``X-FHV-Protocol`` and all that it speaks in
``X-FHV-Protocol-Range``; so does every answer. Software of version 1 knows the first header only,
sends ``1`` and refuses everything else: who speaks to it says ``1`` when it was refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PROTOCOL_HEADER = "X-FHV-Protocol"
RANGE_HEADER = "X-FHV-Protocol-Range"
# The first version in which a plan is put before a site's agent.
CONSENT = 2
# The first version in which a client can take part in a secure sum.
SECURE_SUMS = 3

_NUMBER = re.compile(r"[1-9][0-9]{0,3}")
_RANGE = re.compile(r"([1-9][0-9]{0,3})-([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Versions:
    """All versions from ``oldest`` to ``newest``."""

    oldest: int
    newest: int

    def __post_init__(self) -> None:
        if not 1 <= self.oldest <= self.newest:
            raise ValueError(f"no range of versions: {self.oldest} to {self.newest}")

    def __str__(self) -> str:
        return f"{self.oldest}-{self.newest}"

    def common(self, other: Versions) -> int | None:
        """The newest version that both speak; None if there is none."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None


SPOKEN = Versions(oldest=1, newest=3)


def read(version: str | None, span: str | None) -> Versions | None:
    """What the other side's two headers say; None if there are none.

    The range counts if it is there; a version alone is all that its sender speaks. Raises
    ``ValueError`` for headers that are neither.
    """
    if span is not None:
        found = _RANGE.fullmatch(span)
        if found is None:
            raise ValueError(f"{RANGE_HEADER}: {span[:16]!r} is not OLDEST-NEWEST")
        return Versions(int(found[1]), int(found[2]))
    if version is None:
        return None
    if not _NUMBER.fullmatch(version):
        raise ValueError(f"{PROTOCOL_HEADER}: {version[:16]!r} is not the number of a version")
    return Versions(int(version), int(version))
