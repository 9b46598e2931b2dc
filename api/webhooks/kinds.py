"""What there is to tell, and how it is told: in the transaction in which it happens.

An event says what it is about by ids and by the path at which more can be read with a token of
one's own. It holds no names, no reasons and no numbers of a site: whoever reads the receiver's
inbox may be less than an administrator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.db.engine import ring
from api.db.webhook_models import Webhook, WebhookDelivery, WebhookEvent

TOPIC = "webhooks"
PING = "ping"
# Every kind that a webhook may ask for, and when there is one. Kinds are added, never renamed.
KINDS: Mapping[str, str] = {
    "round-stuck": "a round's deadline was extended or has passed, or it waits too long",
    "budget-80": "a client's account has committed or reserved 80 % of the client's epsilon",
    "plan-awaiting-consent": "a plan was put before sites, and awaits their word",
    "update-rejected": "the content of an update was refused",
    "client-enrolment-waiting": "a client's enrolment awaits an administrator's approval",
}


def stuck_key(run_id: object, number: int, why: str) -> str:
    """A round is told to be stuck once for each reason."""
    return f"round-stuck:{run_id}:{number}:{why}"


async def tell(
    session: AsyncSession, kind: str, *, see: str, key: str | None = None, **about: Any
) -> bool:
    """Deliver an event to every webhook that asks for its kind, once this transaction has
    committed. ``see``: path of the API at which more can be read; ``key``: an event with this key
    is told once, ever. Was there anything to deliver? Raises ``ValueError`` for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of event {kind!r}: add it to api.webhooks.kinds.KINDS")
    # A webhook that is being deleted is waited for and then left out (KEY SHARE): the transaction
    # that tells must not fail for it.
    wanted = select(Webhook.id).where(
        Webhook.disabled_at.is_(None), Webhook.events.contains([kind])
    )
    webhooks = (await session.scalars(wanted.with_for_update(read=True, key_share=True))).all()
    if not webhooks:
        return False
    data = {name: str(v) if isinstance(v, UUID) else v for name, v in about.items()}
    event = {"id": uuid7(), "kind": kind, "key": key, "data": {**data, "see": see}}
    made = insert(WebhookEvent).values(event).on_conflict_do_nothing(index_elements=["key"])
    event_id = await session.scalar(made.returning(WebhookEvent.id))
    if event_id is None:
        return False
    await _deliver(session, event_id, webhooks)
    return True


async def _deliver(session: AsyncSession, event_id: UUID, webhooks: Sequence[UUID]) -> None:
    now = func.clock_timestamp()
    rows = [
        {"id": uuid7(), "webhook_id": webhook, "event_id": event_id, "state": "pending",
         "attempts": 0, "reason": ""}
        for webhook in webhooks
    ]  # fmt: skip
    await session.execute(insert(WebhookDelivery).values(due_at=now), rows)
    await ring(session, TOPIC)
