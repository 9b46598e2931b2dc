"""SQL of webhooks: due deliveries, what became of them, and what there is to tell of rounds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, bindparam, delete, exists, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.models import Client
from api.db.run_models import Round, Run
from api.db.webhook_models import Webhook, WebhookDelivery, WebhookEvent
from api.pages import cut
from api.secure_sums.repository import STEP_OF

_MARGIN_S = 5.0
# At most one of each webhook, so that a slow receiver holds up nobody else. Another coordinator
# skips what is locked here; what it would have locked later is no longer due.
_CLAIM = text(
    """
    WITH due AS (
        SELECT d.id FROM webhooks AS w CROSS JOIN LATERAL (
            SELECT id FROM webhook_deliveries
            WHERE webhook_id = w.id AND state = 'pending' AND due_at <= :now
            ORDER BY due_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
        ) AS d
        WHERE w.disabled_at IS NULL AND w.id <> ALL (:busy) LIMIT :room
    )
    UPDATE webhook_deliveries AS d
    SET due_at = :until, attempted_at = :now, attempts = attempts + 1
    FROM due WHERE d.id = due.id RETURNING d.id
    """
).bindparams(bindparam("busy", type_=ARRAY(Uuid)))


@dataclass(frozen=True)
class Claimed:
    """A delivery whose present attempt is ours."""

    delivery: WebhookDelivery
    webhook: Webhook
    event: WebhookEvent


async def claim(
    session: AsyncSession, now: datetime, lease: timedelta, *, busy: Collection[UUID], room: int
) -> list[Claimed]:
    """Due deliveries of webhooks that are not ``busy``; nobody else tries them before the lease
    has passed.
    """
    values = {"now": now, "until": now + lease, "busy": list(busy), "room": room}
    ids = [row[0] for row in await session.execute(_CLAIM, values)]
    return await _claimed(session, ids) if ids else []


async def _claimed(session: AsyncSession, ids: Collection[UUID]) -> list[Claimed]:
    query = (
        select(WebhookDelivery, Webhook, WebhookEvent)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.id.in_(ids))
    )
    return [Claimed(*row) for row in await session.execute(query)]


async def one_claimed(session: AsyncSession, delivery_id: UUID) -> Claimed:
    (found,) = await _claimed(session, [delivery_id])
    return found


async def settle(
    session: AsyncSession, delivery: WebhookDelivery, **values: Any
) -> WebhookDelivery | None:
    """Write down what became of this attempt, unless somebody has begun another meanwhile."""
    query = (
        update(WebhookDelivery)
        .where(
            WebhookDelivery.id == delivery.id,
            WebhookDelivery.attempts == delivery.attempts,
            WebhookDelivery.state == "pending",
        )
        .values(values)
        .returning(WebhookDelivery)
        .execution_options(populate_existing=True)
    )
    found: WebhookDelivery | None = await session.scalar(query)
    return found


async def page(session: AsyncSession, limit: int, after: UUID | None) -> Sequence[Webhook]:
    """Oldest first, one more than ``limit``."""
    return (await session.scalars(cut(select(Webhook), Webhook.id, limit, after))).all()


async def locked(session: AsyncSession, webhook_id: UUID) -> Webhook | None:
    return await session.get(Webhook, webhook_id, with_for_update={"key_share": True})


async def is_wanted(session: AsyncSession, kind: str) -> bool:
    query = select(exists().where(Webhook.disabled_at.is_(None), Webhook.events.contains([kind])))
    return bool(await session.scalar(query))


async def forget(session: AsyncSession, now: datetime, kept: timedelta) -> None:
    """Deliveries that ended long ago, events without a key that nothing speaks of any more, and
    former secrets that sign no longer.
    """
    before = now - kept
    await session.execute(
        update(Webhook)
        .where(Webhook.former_until < now)
        .values(former_sealed=None, former_until=None)
        .execution_options(synchronize_session=False)
    )
    await session.execute(delete(WebhookDelivery).where(WebhookDelivery.ended_at < before))
    spoken_of = exists().where(WebhookDelivery.event_id == WebhookEvent.id)
    await session.execute(
        delete(WebhookEvent).where(
            WebhookEvent.key.is_(None), WebhookEvent.created_at < before, ~spoken_of
        )
    )


@dataclass(frozen=True)
class Late:
    """A round that waits; ``since``: from when on it does, in its state."""

    run_id: UUID
    number: int
    state: str
    deadline: datetime | None
    since: datetime


async def waiting_rounds(session: AsyncSession) -> list[Late]:
    """Rounds under way of runs that are not paused."""
    query = (
        select(
            Round.run_id, Round.number, Round.state, Round.deadline, Round.opened_at,
            Round.closed_at, Round.created_at,
        )
        .join(Run, Run.id == Round.run_id)
        .where(
            Run.state != "paused",
            Round.state.in_(("open", "closing", "aggregating", *STEP_OF)),
        )
    )  # fmt: skip
    found = []
    for run_id, number, state, deadline, opened, closed, made in await session.execute(query):
        since = {"open": opened, "keys": made, "shares": made}.get(state, closed)
        if since is not None:
            found.append(Late(run_id, number, state, deadline, since))
    return found


async def told_keys(session: AsyncSession, kind: str) -> set[str]:
    query = select(WebhookEvent.key).where(WebhookEvent.kind == kind, WebhookEvent.key.is_not(None))
    return {key for key in await session.scalars(query) if key}


async def client_ids(session: AsyncSession) -> dict[str, UUID]:
    """Of clients that are not revoked, by name."""
    rows = await session.execute(select(Client.name, Client.id).where(Client.revoked_at.is_(None)))
    return {row[0]: row[1] for row in rows}


def lease(timeout_s: float) -> timedelta:
    """So long an attempt is its claimer's: well beyond its end, with what is written afterwards."""
    return timedelta(seconds=2 * timeout_s + _MARGIN_S)
