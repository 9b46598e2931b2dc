"""Shamir's secret sharing of 256-bit secrets over a prime field.

Any ``threshold`` shares give the secret back; fewer are independent of it (they are uniform for
every secret). The field is larger than 2^256, so that every secret is a field element.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

PRIME = (1 << 256) + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


class NotEnoughShares(ValueError):
    """Fewer shares than the threshold: they say nothing about the secret."""


def share(secret: bytes, threshold: int, points: Sequence[int]) -> dict[int, bytes]:
    """One share for each of ``points`` (distinct, from 1 on)."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"a threshold of {threshold} needs at least as many points")
    if len(set(points)) != len(points) or min(points) < 1:
        raise ValueError("points must be distinct and positive: the secret lies at 0")
    high_first = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    high_first.append(int.from_bytes(secret, "big"))
    return {point: _at(high_first, point).to_bytes(SHARE_BYTES, "big") for point in points}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret of ``threshold`` or more shares by point. Raises ``NotEnoughShares``, or
    ``ValueError`` if they are not shares of one secret.
    """
    if len(shares) < threshold:
        raise NotEnoughShares(f"{len(shares)} shares of {threshold} that are needed")
    points = tuple(sorted(shares))
    values = {point: _number(shares[point]) for point in points}
    used = points[:threshold]
    weights = _weights(used, 0)
    secret = sum(weight * values[point] for weight, point in zip(weights, used, strict=True))
    for point in points[threshold:]:  # more shares than needed must lie on the same polynomial
        found = sum(w * values[p] for w, p in zip(_weights(used, point), used, strict=True))
        if found % PRIME != values[point]:
            raise ValueError(f"the share at {point} is not one of the same secret")
    secret %= PRIME
    if secret >> 8 * SECRET_BYTES:
        raise ValueError("these are not shares of one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def _number(share: bytes) -> int:
    number = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or number >= PRIME:
        raise ValueError("a share is a field element of 33 bytes")
    return number


def _at(high_first: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in high_first:
        value = (value * point + coefficient) % PRIME
    return value


@lru_cache(maxsize=4096)
def _weights(points: tuple[int, ...], at: int) -> list[int]:
    """Lagrange's weights of the values at ``points`` for the value at ``at``."""
    found = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * (at - other) % PRIME
                below = below * (point - other) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found
