"""One attempt to deliver: what is sent, to which address, and what came of it."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import certifi
import httpx
import orjson

from api import sealing
from api.config import Settings
from api.webhooks import addresses, signing
from api.webhooks.repository import Claimed

_TROUBLE = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)


@dataclass(frozen=True)
class Outcome:
    """What an attempt came to. ``way``: its label among the metrics."""

    way: str
    status: int | None = None
    reason: str = ""
    retry_after_s: float = 0.0

    @property
    def arrived(self) -> bool:
        return self.way == "delivered"


def body_of(claimed: Claimed) -> bytes:
    """The same bytes at every attempt."""
    event = claimed.event
    shown = {"type": event.kind, "timestamp": event.created_at, "data": event.data}
    return orjson.dumps(shown, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)


class Sender:
    """Sends for one process. Its certificates are read when there is something to send."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        # No proxy and no netrc of the environment: a proxy would resolve the name by itself.
        return httpx.AsyncClient(
            verify=_authorities(),
            timeout=None,  # noqa: S113 (an attempt as a whole has one)
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"User-Agent": "fedhypevae-webhooks"},
        )

    async def close(self) -> None:
        if "_http" in self.__dict__:
            await self._http.aclose()

    async def send(self, claimed: Claimed) -> Outcome:
        """One attempt, to its end or to its time limit. Never raises for what a receiver does."""
        settings, webhook = self._settings, claimed.webhook
        target = addresses.parsed(webhook.url)
        try:
            secrets = self._secrets(claimed)
        except sealing.OtherPepper:
            return Outcome("blocked", reason="its secret was sealed under another FHV_TOKEN_PEPPER")
        if target.scheme == "http" and not (
            settings.webhooks_allow_http or addresses.is_loopback(target.host)
        ):
            return Outcome("blocked", reason="http:// is not allowed any more")
        try:
            async with asyncio.timeout(settings.webhooks_timeout_s):
                address = await addresses.resolved(
                    target, allow_private=settings.webhooks_allow_private
                )
                return await self._post(target, address, claimed, secrets)
        except addresses.AddressRefused as refusal:
            return Outcome("blocked", reason=f"the host has {refusal}")
        except TimeoutError:
            return Outcome("failed", reason=f"no answer in {settings.webhooks_timeout_s:g} s")
        except _TROUBLE as error:  # their texts may quote addresses
            return Outcome("failed", reason=f"no connection or no answer ({type(error).__name__})")

    def _secrets(self, claimed: Claimed) -> list[bytes]:
        """The present one and, while it is being changed, the one before."""
        webhook, now = claimed.webhook, claimed.delivery.attempted_at
        pepper, until = self._settings.pepper, webhook.former_until
        secrets = [signing.opened(webhook.sealed, webhook.id, pepper)]
        if webhook.former_sealed is not None and until is not None and now and now < until:
            with suppress(sealing.OtherPepper):  # it was the pepper that was changed
                secrets.append(signing.opened(webhook.former_sealed, webhook.id, pepper))
        return secrets

    async def _post(
        self, target: addresses.Target, address: str, claimed: Claimed, secrets: list[bytes]
    ) -> Outcome:
        """To the address that was judged, under the name that was asked for: certificates are
        checked against the name.
        """
        body = body_of(claimed)
        connect_to = f"[{address}]" if ":" in address else address
        default = {"https": 443, "http": 80}[target.scheme]
        named = f"[{target.host}]" if ":" in target.host else target.host
        request = self._http.build_request(
            "POST",
            f"{target.scheme}://{connect_to}:{target.port}{target.path}",
            content=body,
            headers={
                "Host": named if target.port == default else f"{named}:{target.port}",
                "Content-Type": "application/json",
                **signing.headers(secrets, claimed.event.id, int(time.time()), body),
            },
            extensions={"sni_hostname": target.host},
        )
        answer = await self._http.send(request, stream=True)
        await answer.aclose()  # its head is all that counts; a body might never end
        status = answer.status_code
        if answer.is_success:
            return Outcome("delivered", status)
        if answer.is_redirect:
            return Outcome("refused", status, f"answered {status}: redirects are not followed")
        asked = _seconds(answer.headers.get("Retry-After"))
        return Outcome("refused", status, f"answered {status}", asked)


def _authorities() -> ssl.SSLContext:
    """Those of this machine (also SSL_CERT_FILE), and those that come with the HTTP client."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _seconds(value: str | None) -> float:
    """Of ``Retry-After`` in seconds; dates, and what cannot be read, count as none."""
    try:
        seconds = float(value or 0.0)
    except ValueError:
        return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
