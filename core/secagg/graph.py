"""Who shares masks with whom, and how many may be missing or dishonest.

Few sites: everybody with everybody. Many: a ring in an order drawn from all public keys of the
round, each with its k nearest (Bell et al. 2020 draw it so). The coordinator sees the ring before
it says who has gone missing, and with colluders' keys it can draw it as often as it likes; so
nothing here rests on luck. k is larger than ``drop + collude``, and then, for every order and every
choice of the missing and the dishonest,

* no site has ``threshold`` dishonest neighbours, who could together open its secrets;
* every site keeps ``threshold`` neighbours that answer at the end, so that the sum can be opened;
* honest sites that answer stay connected, so that nothing but their sum can be opened: a ring of
  the k nearest falls apart only where k / 2 in a row are gone at two places.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ALL_WITH_ALL = 32


class NoThresholds(ValueError):
    """No graph of these sites does what is asked; the message names what to change."""


def quorum(sites: int, collude: int) -> int:
    """Sites that must sign one list before anything is opened: of two lists with so many signatures
    each, an honest site has signed both, and none does.
    """
    return (sites + collude) // 2 + 1


@dataclass(frozen=True)
class Thresholds:
    """``neighbours``: of each site (even, or all others). ``threshold``: shares that open a secret.
    ``survivors``: sites that must have posted their vectors before anything is opened.
    """

    sites: int
    neighbours: int
    threshold: int
    survivors: int

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, sites: int, drop: int, collude: int) -> Thresholds:
        """For up to ``drop`` sites that go missing and ``collude`` that work with the coordinator.
        Raises ``NoThresholds``.
        """
        if sites - max(drop, 0) < 3:
            raise NoThresholds(
                f"{sites} sites, {drop} of them missing: a sum of fewer than three hides nobody"
            )
        if drop < 0 or collude < 0 or drop + collude > sites - 2:
            raise NoThresholds(
                f"drop {drop} and collude {collude} of {sites} sites leave fewer than two whose "
                "vectors hide one another: lower one of them"
            )
        if 2 * (sites - drop) <= sites + collude:
            raise NoThresholds(
                f"with drop {drop} and collude {collude} of {sites} sites a dishonest coordinator "
                "could tell two halves of them two stories: lower one of them"
            )
        if sites <= ALL_WITH_ALL:
            return _complete(sites, drop, collude)
        neighbours = _even(max(drop + collude + 1, 2 * math.ceil(math.log2(sites))))
        if neighbours >= sites - 1:
            return _complete(sites, drop, collude)
        threshold = _between(collude, neighbours - drop)
        return cls(sites, neighbours, threshold, sites - drop)


def _complete(sites: int, drop: int, collude: int) -> Thresholds:
    """A site's secrets are shared with all others; a missing one's others are one fewer."""
    answering = sites - 1 - drop
    return Thresholds(sites, sites - 1, _between(collude, answering), sites - drop)


def _between(collude: int, answering: int) -> int:
    """More shares than ``collude`` sites have; half of those that answer, so that some may fail."""
    return max(collude + 1, answering // 2 + 1)


def _even(number: int) -> int:
    return number + number % 2


def ring(keys: Sequence[bytes]) -> list[int]:
    """The order of the round's ring: a permutation drawn from all public keys together."""
    digest = hashlib.sha256(b"fhv-secagg ring" + b"".join(sorted(keys))).digest()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    return [int(place) for place in random.permutation(len(keys))]


def neighbours_of(site: int, order: Sequence[int], degree: int) -> list[int]:
    """The ``degree`` nearest of ``site`` on the ring (all others if there are no more)."""
    sites = len(order)
    if degree >= sites - 1:
        return [other for other in range(sites) if other != site]
    place = order.index(site)
    half = degree // 2
    found = {order[(place + step) % sites] for step in range(-half, half + 1) if step}
    return sorted(found)
