"""Against guessing: who sends credentials that nobody has is soon answered without being heard.

An address may fail so often a minute (a bucket that fills evenly). Once it is empty, credentials
that this process has not accepted lately are refused with 429 and no look at the database; those
that it has accepted go on working, so that one broken script does not lock out the hospital behind
whose address it runs. Each process counts for itself. Tokens have 256 random bits and codes 120:
this keeps guessing cheap for us, it is not what makes it hopeless.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from api.problems import TooManyFailures
from core.recent import Recent

_ADDRESSES = 10_000
_KNOWN = 10_000
_SITE_BITS = 64  # whoever has one IPv6 address has 2^64 of them
_MINUTE_S = 60.0
NOWHERE = "unknown"


@dataclass
class _Bucket:
    left: float
    at: float


class Guard:
    """Failures of each address, and what was accepted lately; bounded in memory."""

    def __init__(
        self, failures_per_minute: int = 60, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._clock = float(failures_per_minute), clock
        self._buckets: Recent[str, _Bucket] = Recent(_ADDRESSES)
        self._known: Recent[bytes, bool] = Recent(_KNOWN)

    def admit(self, address: str, mac: bytes) -> None:
        """Raises ``TooManyFailures`` if nobody should look at these credentials now."""
        if self._known.get(mac) is not None:
            return
        bucket = self._bucket(address)
        if bucket.left < 1.0:
            seconds = math.ceil((1.0 - bucket.left) * _MINUTE_S / self._most)
            raise TooManyFailures(
                "too many tokens or codes from this address were not valid",
                mend="Check what is sent; wait as long as Retry-After says.",
                retry_after_s=max(seconds, 1),
            )

    def accepted(self, mac: bytes) -> None:
        self._known.keep(mac, True)

    def failed(self, address: str, mac: bytes) -> None:
        """These credentials were looked at and are not valid (any more)."""
        self._known.drop(mac)
        self._bucket(address).left -= 1.0

    def _bucket(self, address: str) -> _Bucket:
        now, name = self._clock(), _site_of(address)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets.keep(name, _Bucket(self._most, now))
        bucket.left = min(self._most, bucket.left + (now - bucket.at) * self._most / _MINUTE_S)
        bucket.at = now
        return bucket


def address_of(request: Request) -> str:
    """Where a request comes from, as the server sees it (behind a proxy: FHV_TRUSTED_PROXIES)."""
    return request.client.host if request.client else NOWHERE


def _site_of(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _SITE_BITS), strict=False))
