"""Sends what is due: at least once, with patience, and to nobody whom the operator did not mean.

A delivery is claimed by moving its next attempt beyond the end of this one, then sent without a
transaction, then settled. Killed in between, the same event is sent again under the same
``webhook-id``. Two coordinators share the work.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import certifi
import httpx
import orjson
import psycopg
import structlog
from sqlalchemy.exc import SQLAlchemyError

from api import sealing
from api.context import Context
from api.db.hub import wait
from api.db.webhook_models import Webhook, WebhookDelivery
from api.webhooks import addresses, repository, service, signing
from api.webhooks.kinds import PING, TOPIC
from api.webhooks.repository import Claimed

log = structlog.get_logger(__name__)
_AT_ONCE = 16
_LONGEST_PAUSE_S = 6 * 3600.0
_DEAD_AT_MOST = 5  # deliveries given up in a row: then nobody listens there any more
_ANSWER_BYTES = 16_384
_GONE = 410
_ANY_DUE = """
SELECT 1 FROM webhook_deliveries
WHERE state = 'pending' AND due_at <= clock_timestamp() + %(clock)s LIMIT 1
"""


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


def pause_s(attempts: int, first_s: float, asked_s: float = 0.0) -> float:
    """Before the next attempt: doubled each time, up to six hours, or as long as the receiver asked
    for; between a half and all of it, so that what failed together does not come back together.
    """
    planned = min(first_s * 2.0 ** min(attempts - 1, 30), _LONGEST_PAUSE_S)
    jittered = planned * random.uniform(0.5, 1.0)  # noqa: S311 (nothing secret in a pause)
    return max(jittered, min(asked_s, _LONGEST_PAUSE_S))


class Courier:
    """Delivers for one process. ``run`` is its background task; ``deliver`` is one pass of it."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._under_way: dict[UUID, asyncio.Task[None]] = {}
        # No proxy and no netrc of the environment: a proxy would resolve the name by itself.
        self._http = httpx.AsyncClient(
            verify=_authorities(),
            timeout=ctx.settings.webhooks_timeout_s,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"User-Agent": "fedhypevae-webhooks"},
        )

    async def run(self) -> None:
        """Until cancelled. What is cut off is sent again by whoever is there then."""
        with self._ctx.hub.subscribe(TOPIC) as bell:
            try:
                while True:
                    await self._begin_if_due(bell.set)
                    await wait(bell, self._ctx.settings.poll_s)
            finally:
                for task in self._under_way.values():
                    task.cancel()
                await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def deliver(self) -> int:
        """Send everything that is due now; how many attempts that were."""
        count = 0
        while begun := await self._begin(lambda: None):
            count += begun
            await asyncio.gather(*self._under_way.values())
        return count

    async def close(self) -> None:
        await self._http.aclose()

    async def _begin_if_due(self, done: Callable[[], None]) -> None:
        try:
            if await self._ctx.database.glance(_ANY_DUE):
                await self._begin(done)
        except (SQLAlchemyError, psycopg.Error, OSError) as error:
            log.warning("courier_without_database", error=type(error).__name__)

    async def _begin(self, done: Callable[[], None]) -> int:
        """Start what is due, as far as there is room; ``done`` is called at the end of each."""
        ctx = self._ctx
        room = _AT_ONCE - len(self._under_way)
        if room <= 0:
            return 0
        async with ctx.database.write() as session:
            claimed = await repository.claim(
                session,
                await ctx.database.now(session),
                repository.lease(ctx.settings.webhooks_timeout_s),
                busy=list(self._under_way),
                room=room,
            )

        def ended(webhook_id: UUID) -> None:
            del self._under_way[webhook_id]
            done()

        for each in claimed:
            task = asyncio.create_task(self._carry(each))
            self._under_way[each.webhook.id] = task
            task.add_done_callback(lambda _, webhook_id=each.webhook.id: ended(webhook_id))  # type: ignore[misc]
        return len(claimed)

    async def _carry(self, claimed: Claimed) -> None:
        try:
            await self.attempt(claimed)
        except Exception:  # tried again when its lease has passed
            log.exception("webhook_attempt_failed", delivery_id=str(claimed.delivery.id))

    async def attempt(self, claimed: Claimed) -> None:
        """Send a claimed delivery and write down what became of it."""
        outcome = await self._sent(claimed)
        self._ctx.meters.webhook_attempts.labels(outcome.way).inc()
        await self._settle(claimed, outcome)

    async def _sent(self, claimed: Claimed) -> Outcome:
        settings, webhook = self._ctx.settings, claimed.webhook
        target = addresses.parsed(webhook.url)
        try:
            secrets = await self._secrets(webhook)
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
        except (httpx.HTTPError, OSError) as error:  # their texts may quote addresses
            return Outcome("failed", reason=f"no connection or no answer ({type(error).__name__})")

    async def _secrets(self, webhook: Webhook) -> list[bytes]:
        pepper = self._ctx.settings.pepper
        secrets = [signing.opened(webhook.sealed, webhook.id, pepper)]
        if webhook.former_sealed is not None and webhook.former_until is not None:
            async with self._ctx.database.read() as session:
                now = await self._ctx.database.now(session)
            if now < webhook.former_until:
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
        try:  # some of the body is read for the sake of receivers that mind; none of it is kept
            seen = 0
            async for chunk in answer.aiter_raw():
                seen += len(chunk)
                if seen > _ANSWER_BYTES:
                    break
        finally:
            await answer.aclose()
        status = answer.status_code
        if answer.is_success:
            return Outcome("delivered", status)
        if answer.is_redirect:
            return Outcome("refused", status, f"answered {status}: redirects are not followed")
        asked = _seconds(answer.headers.get("Retry-After"))
        return Outcome("refused", status, f"answered {status}", asked)

    async def _settle(self, claimed: Claimed, outcome: Outcome) -> None:
        ctx, delivery = self._ctx, claimed.delivery
        only_one = claimed.event.kind == PING
        dead = not outcome.arrived and (
            only_one
            or outcome.status == _GONE
            or delivery.attempts >= ctx.settings.webhooks_attempts
        )
        async with ctx.database.write() as session:
            webhook = await repository.locked(session, delivery.webhook_id)
            if webhook is None:  # deleted meanwhile, and its deliveries with it
                return
            now = await ctx.database.now(session)
            values: dict[str, object] = {"status": outcome.status, "reason": outcome.reason}
            if outcome.arrived:
                values |= {"state": "delivered", "ended_at": now}
            elif dead:
                values |= {"state": "dead", "ended_at": now}
            else:
                pause = pause_s(
                    delivery.attempts, ctx.settings.webhooks_backoff_s, outcome.retry_after_s
                )
                values["due_at"] = now + timedelta(seconds=pause)
            settled = await repository.settle(session, delivery, **values)
            if settled is None:
                return
            if outcome.arrived:
                webhook.dead_in_row = 0
            elif dead and not only_one:
                webhook.dead_in_row += 1
            if outcome.status == _GONE and not only_one:
                await service.disable(ctx, session, None, webhook, "the receiver answered 410 Gone")
            elif webhook.dead_in_row >= _DEAD_AT_MOST:
                why = f"{_DEAD_AT_MOST} deliveries in a row were given up"
                await service.disable(ctx, session, None, webhook, why)
        _tell_log(settled, outcome)


def _authorities() -> ssl.SSLContext:
    """Those of this machine (also SSL_CERT_FILE), and those that come with the HTTP client."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _tell_log(delivery: WebhookDelivery, outcome: Outcome) -> None:
    facts = {
        "delivery_id": str(delivery.id),
        "webhook_id": str(delivery.webhook_id),
        "state": delivery.state,
        "attempts": delivery.attempts,
        "status": outcome.status,
    }
    if outcome.arrived:
        log.info("webhook_delivered", **facts)
    else:
        log.warning("webhook_not_delivered", reason=outcome.reason, **facts)


def _seconds(value: str | None) -> float:
    """Of ``Retry-After`` in seconds; dates, and what cannot be read, count as none."""
    try:
        seconds = float(value or 0.0)
    except ValueError:
        return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
