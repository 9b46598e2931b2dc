"""Where a webhook may go: a coordinator must not be made to ask its own network.

The name is resolved here, every address that it has is judged, and the connection goes to an
address that was judged, so that a name cannot change between the look and the call.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Of these nothing is ever asked: cloud machines answer there with their own credentials.
_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "fd20:ce::254/128",
                    "100.100.100.200/32", "192.0.0.192/32")
)  # fmt: skip
# IPv6 addresses whose last 32 bits are an IPv4 address to which the call may be passed on.
_CARRIERS = tuple(
    ipaddress.ip_network(network) for network in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_ASSIGNED = ipaddress.ip_network("2000::/3")  # all that is global of IPv6 lies here
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?|[0-9a-f:.]{2,45}")
_LONGEST_URL = 2_000


class AddressRefused(Exception):
    """Nothing is sent there; the message says why and names no address of the local network."""


@dataclass(frozen=True)
class Target:
    """A URL in its parts. ``host`` is a name or an address without brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Without path and query, which may hold a secret: for logs and the audit trail."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parsed(url: str) -> Target:
    """The parts of an http(s) URL. Raises ``ValueError`` that says what is wrong."""
    if len(url) > _LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            f"must be printable ASCII without spaces, at most {_LONGEST_URL} characters"
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("must begin with https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user name or password: deliveries are signed instead")
    if parts.fragment:
        raise ValueError("must hold no fragment (#...)")
    host = parts.hostname or ""
    if not _HOST.fullmatch(host):
        raise ValueError("must name a host")
    port = parts.port  # itself a ValueError if it is no number
    if port == 0:
        raise ValueError("must name a port from 1 to 65535")
    default = 443 if parts.scheme == "https" else 80
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or default, path)


def literal(host: str) -> _Address | None:
    """The address, if the host is one and no name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    address = literal(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def judge(address: _Address, *, allow_private: bool) -> None:
    """Raises ``AddressRefused`` unless something may be sent to this address."""
    inner = _inside(address)
    if inner is not None:
        judge(inner, allow_private=allow_private)
        return
    if any(address in network for network in _NEVER if network.version == address.version):
        raise AddressRefused("a link-local address or one of a cloud's metadata")
    if address.is_multicast or address.is_unspecified:
        raise AddressRefused("an address of no single machine")
    public = address.is_global and (address.version == 4 or address in _ASSIGNED)
    if not public and not allow_private:
        raise AddressRefused("a private address (FHV_WEBHOOKS_ALLOW_PRIVATE would allow it)")


def _inside(address: _Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for, if it stands for one."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in network for network in _CARRIERS):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return None


async def resolved(target: Target, *, allow_private: bool) -> str:
    """An address to connect to. Raises ``AddressRefused`` if any address of the name is refused,
    ``OSError`` if it has none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    for address in addresses:
        judge(address, allow_private=allow_private)
    return str(addresses[0])
