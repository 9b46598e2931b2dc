"""Sends what is due: at least once, with patience, and to nobody whom the operator did not mean.

A delivery is claimed by moving its next attempt beyond the end of this one, then sent without a
transaction, then settled. Killed in between, the same event is sent again under the same
``webhook-id``. Two coordinators share the work.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from uuid import UUID

import psycopg
import structlog
from sqlalchemy.exc import SQLAlchemyError

from api.context import Context
from api.db.hub import wait
from api.db.webhook_models import WebhookDelivery
from api.webhooks import repository, service
from api.webhooks.kinds import PING, TOPIC
from api.webhooks.repository import Claimed
from api.webhooks.sending import Outcome, Sender

log = structlog.get_logger(__name__)
_AT_ONCE = 16
_LONGEST_PAUSE_S = 6 * 3600.0
_DEAD_AT_MOST = 5  # deliveries given up in a row: then nobody listens there any more
_GONE = 410
_ANY_DUE = """
SELECT 1 FROM webhook_deliveries AS d JOIN webhooks AS w ON w.id = d.webhook_id
WHERE d.state = 'pending' AND d.due_at <= clock_timestamp() + %(clock)s AND w.disabled_at IS NULL
LIMIT 1
"""


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
        self._sender = Sender(ctx.settings)

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
        await self._sender.close()

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

        for each in claimed:
            task = asyncio.create_task(self._carry(each))
            self._under_way[each.webhook.id] = task
            task.add_done_callback(partial(self._ended, each.webhook.id, done))
        return len(claimed)

    def _ended(self, webhook_id: UUID, done: Callable[[], None], _: asyncio.Task[None]) -> None:
        del self._under_way[webhook_id]
        done()

    async def _carry(self, claimed: Claimed) -> None:
        try:
            await self.attempt(claimed)
        except Exception:  # what was sent, and not written down, is sent again
            log.exception("webhook_not_settled", delivery_id=str(claimed.delivery.id))

    async def attempt(self, claimed: Claimed) -> None:
        """Send a claimed delivery and write down what became of it."""
        try:
            outcome = await self._sender.send(claimed)
        except Exception:  # a fault of ours is a failed attempt: it ends, too
            log.exception("webhook_attempt_crashed", delivery_id=str(claimed.delivery.id))
            outcome = Outcome("failed", reason="an error here: the coordinator's log has it")
        self._ctx.meters.webhook_attempts.labels(outcome.way).inc()
        await self._settle(claimed, outcome)

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
