"""What administrators do with webhooks, and how they are shown."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.config import Settings
from api.context import Context
from api.db.base import uuid7
from api.db.engine import ring
from api.db.webhook_models import Webhook, WebhookDelivery, WebhookEvent
from api.pages import cut
from api.problems import Conflict, InvalidRequest, NotFound
from api.webhooks import addresses, repository, signing
from api.webhooks.kinds import KINDS, PING, TOPIC

Kind = Literal[
    "round-stuck", "budget-80", "plan-awaiting-consent", "update-rejected",
    "client-enrolment-waiting",
]  # fmt: skip
State = Literal["pending", "delivered", "dead"]
BY_OPERATOR = "disabled by an administrator"


def _each_once(kinds: list[Kind]) -> list[Kind]:
    return [kind for kind in KINDS if kind in kinds]


def _is_url(url: str) -> str:
    addresses.parsed(url)
    return url


class NewWebhook(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, AfterValidator(_is_url)] = Field(
        description="https://; http:// where FHV_WEBHOOKS_ALLOW_HTTP is set, and to loopback."
    )
    events: Annotated[list[Kind], AfterValidator(_each_once)] = Field(min_length=1)
    label: str = Field(min_length=1, max_length=100, description="What it is for, for people.")


class WebhookView(BaseModel):
    id: UUID
    url: str
    label: str
    events: list[str]
    created_at: datetime
    disabled_at: datetime | None
    disabled_why: str
    former_until: datetime | None = Field(description="Until then the secret before signs, too.")


class WebhookMade(WebhookView):
    secret: str = Field(description="Shown once; it is stored sealed.")


class DeliveryView(BaseModel):
    id: UUID
    event_id: UUID = Field(description="The header `webhook-id`: the same at every attempt.")
    type: str
    data: dict[str, Any]
    state: State
    attempts: int
    due_at: datetime | None = Field(description="Of a pending one: its next attempt.")
    attempted_at: datetime | None
    status: int | None = Field(description="Of the last answer, if there was one.")
    reason: str = Field(description="Why the last attempt failed.")
    created_at: datetime
    ended_at: datetime | None


def view(row: Webhook) -> WebhookView:
    return WebhookView.model_validate(row, from_attributes=True)


def delivery_view(row: WebhookDelivery, event: WebhookEvent) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        event_id=event.id,
        type=event.kind,
        data=event.data,
        state=cast(State, row.state),
        attempts=row.attempts,
        due_at=row.due_at if row.state == "pending" else None,
        attempted_at=row.attempted_at,
        status=row.status,
        reason=row.reason,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )


def check_url(url: str, settings: Settings) -> addresses.Target:
    """Raises ``InvalidRequest`` for what can be seen to be refused without asking for the name."""
    target = addresses.parsed(url)
    plain = target.scheme == "http" and not addresses.is_loopback(target.host)
    if plain and not settings.webhooks_allow_http:
        raise InvalidRequest(
            "the URL must begin with https://",
            field="url",
            mend="Give the receiver a certificate, or set FHV_WEBHOOKS_ALLOW_HTTP=true.",
        )
    address = addresses.literal(target.host)
    if address is not None:
        try:
            addresses.judge(address, allow_private=settings.webhooks_allow_private)
        except addresses.AddressRefused as refusal:
            raise InvalidRequest(
                f"nothing is sent to {refusal}",
                field="url",
                mend="Name a receiver on the internet, or set FHV_WEBHOOKS_ALLOW_PRIVATE=true.",
            ) from None
    return target


def _of(row: Webhook) -> dict[str, str]:
    """For the trail: the rest of a URL may be a secret."""
    return {"webhook": str(row.id), "to": addresses.parsed(row.url).origin}


async def create(
    ctx: Context, session: AsyncSession, who: Principal, body: NewWebhook
) -> WebhookMade:
    check_url(body.url, ctx.settings)
    secret, webhook_id = signing.new(), uuid7()
    row = Webhook(
        id=webhook_id,
        url=body.url,
        label=body.label,
        events=list(body.events),
        sealed=signing.sealed(secret, webhook_id, ctx.settings.pepper),
        dead_in_row=0,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await audit.record(session, "webhook-created", who, **_of(row), events=row.events)
    return WebhookMade(secret=signing.shown(secret), **view(row).model_dump())


async def one(session: AsyncSession, webhook_id: UUID, *, lock: bool = False) -> Webhook:
    """Raises ``NotFound``."""
    found = await (
        repository.locked(session, webhook_id) if lock else session.get(Webhook, webhook_id)
    )
    if found is None:
        raise NotFound(f"there is no webhook {webhook_id}", field="webhook_id")
    return found


async def disable(
    ctx: Context, session: AsyncSession, who: audit.Actor, row: Webhook, why: str
) -> Webhook:
    """What is pending waits until it is enabled again; what happens meanwhile is not told to it."""
    if row.disabled_at is None:
        row.disabled_at, row.disabled_why = await ctx.database.now(session), why
        await audit.record(session, "webhook-disabled", who, **_of(row), why=why)
    return row


async def enable(session: AsyncSession, who: Principal, row: Webhook) -> Webhook:
    if row.disabled_at is not None:
        row.disabled_at, row.disabled_why, row.dead_in_row = None, "", 0
        await audit.record(session, "webhook-enabled", who, **_of(row))
        await ring(session, TOPIC)
    return row


async def remove(session: AsyncSession, who: Principal, row: Webhook) -> None:
    """With its deliveries and its secret."""
    about = _of(row)
    await session.delete(row)
    await audit.record(session, "webhook-deleted", who, **about)


async def rotate(ctx: Context, session: AsyncSession, who: Principal, row: Webhook) -> WebhookMade:
    """A new secret; the present one goes on signing beside it for a while, one before that not."""
    secret, now = signing.new(), await ctx.database.now(session)
    row.former_sealed = row.sealed
    row.former_until = now + timedelta(seconds=ctx.settings.webhooks_overlap_s)
    row.sealed = signing.sealed(secret, row.id, ctx.settings.pepper)
    await session.flush()
    await audit.record(session, "webhook-key-rotated", who, **_of(row))
    return WebhookMade(secret=signing.shown(secret), **view(row).model_dump())


async def begin_ping(ctx: Context, session: AsyncSession, row: Webhook) -> UUID:
    """A delivery of kind ``ping`` whose only attempt is the caller's; its id."""
    now = await ctx.database.now(session)
    event = WebhookEvent(id=uuid7(), kind=PING, data={"see": f"/v1/webhooks/{row.id}"})
    session.add(event)
    await session.flush()
    delivery = WebhookDelivery(
        id=uuid7(),
        webhook_id=row.id,
        event_id=event.id,
        state="pending",
        attempts=1,
        attempted_at=now,
        due_at=now + repository.lease(ctx.settings.webhooks_timeout_s),
    )
    session.add(delivery)
    await session.flush()
    return delivery.id


async def page(
    session: AsyncSession, webhook_id: UUID, limit: int, after: UUID | None, state: State | None
) -> list[DeliveryView]:
    """Oldest first, one more than ``limit``."""
    query = (
        select(WebhookDelivery, WebhookEvent)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.webhook_id == webhook_id)
    )
    if state is not None:
        query = query.where(WebhookDelivery.state == state)
    rows = await session.execute(cut(query, WebhookDelivery.id, limit, after))
    return [delivery_view(*row) for row in rows]


async def again(
    ctx: Context, session: AsyncSession, webhook_id: UUID, delivery_id: UUID
) -> DeliveryView:
    """Due now, with all its attempts before it, whatever has become of it. Raises ``NotFound``, and
    ``Conflict`` if the webhook is disabled.
    """
    webhook = await one(session, webhook_id)
    query = select(WebhookDelivery).where(
        WebhookDelivery.id == delivery_id, WebhookDelivery.webhook_id == webhook_id
    )
    row = await session.scalar(query.with_for_update())
    if row is None:
        raise NotFound(f"this webhook has no delivery {delivery_id}", field="delivery_id")
    if webhook.disabled_at is not None:
        raise Conflict(
            f"the webhook is disabled: {webhook.disabled_why}",
            field="webhook_id",
            mend=f"POST /v1/webhooks/{webhook_id}/enable first.",
        )
    row.state, row.attempts, row.ended_at = "pending", 0, None
    row.due_at = await ctx.database.now(session)
    await session.flush()
    await ring(session, TOPIC)
    event = await session.get_one(WebhookEvent, row.event_id)
    return delivery_view(row, event)
