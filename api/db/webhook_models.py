"""Webhooks: who wants to be told, what there was to tell, and what became of telling it."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from api.db.base import Base, CreatedAt, Json, Key, Time


class Webhook(Base):
    """A receiver. ``sealed`` is its secret under the token pepper; until ``former_until`` the one
    before signs, too. ``dead_in_row``: deliveries given up since the last one that arrived.
    """

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint("cardinality(events) > 0", name="events"),
        CheckConstraint("(former_sealed IS NULL) = (former_until IS NULL)", name="former"),
        CheckConstraint("dead_in_row >= 0", name="dead_in_row"),
    )

    id: Mapped[Key]
    url: Mapped[str] = mapped_column(Text)
    label: Mapped[str] = mapped_column(String(100))
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    former_sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    former_until: Mapped[Time | None]
    created_at: Mapped[CreatedAt]
    disabled_at: Mapped[Time | None]
    disabled_why: Mapped[str] = mapped_column(Text, default="")
    dead_in_row: Mapped[int] = mapped_column(SmallInteger, default=0)


class WebhookEvent(Base):
    """Something to tell, written in the transaction in which it happened. Its id is the
    ``webhook-id`` of all its deliveries. ``key``: what is told once has one.
    """

    __tablename__ = "webhook_events"
    __table_args__ = (UniqueConstraint("key"),)

    id: Mapped[Key]
    kind: Mapped[str] = mapped_column(String(48))
    key: Mapped[str | None] = mapped_column(Text)
    data: Mapped[Json]
    created_at: Mapped[CreatedAt]


class WebhookDelivery(Base):
    """One event for one webhook. ``due_at``: when it may be tried (again); whoever tries moves it
    beyond the end of the attempt, so that what a killed process had in hand is tried by another.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'dead')", name="state"),
        CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name="ended"),
        CheckConstraint("attempts >= 0", name="attempts"),
        Index(None, "webhook_id", "id"),
        Index(None, "event_id"),
        Index(
            "ix_webhook_deliveries_due",
            "webhook_id",
            "due_at",
            postgresql_where=text("state = 'pending'"),
        ),
    )

    id: Mapped[Key]
    webhook_id: Mapped[UUID] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_events.id"))
    state: Mapped[str] = mapped_column(String(16), default="pending")
    attempts: Mapped[int] = mapped_column(SmallInteger, default=0)
    due_at: Mapped[Time]
    attempted_at: Mapped[Time | None]
    status: Mapped[int | None] = mapped_column(SmallInteger)
    reason: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[CreatedAt]
    ended_at: Mapped[Time | None]
