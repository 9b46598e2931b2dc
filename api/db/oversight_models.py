"""What people decide and look up later: consents, the audit trail, refused updates, erasures."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    String,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from api.db.base import Base, CreatedAt, Digest, Key, Time


class Consent(Base):
    """A site's word on one run's plan. It is asked once and decided once.

    ``epsilon`` is what was shown: the account's worst case if the client executes the whole plan.
    """

    __tablename__ = "consents"
    __table_args__ = (
        CheckConstraint("state IN ('asked', 'approved', 'refused')", name="state"),
        CheckConstraint("(state = 'asked') = (decided_at IS NULL)", name="decided"),
        CheckConstraint("(state = 'asked') = (decided_by IS NULL)", name="decided_by_whom"),
        CheckConstraint("decided_by IN ('person', 'policy')", name="decided_by"),
        ForeignKeyConstraint(
            ["run_id", "client_id"], ["run_clients.run_id", "run_clients.client_id"]
        ),
        Index("uq_consents_run_id_client_id", "run_id", "client_id", unique=True),
        Index("ix_consents_asked", "client_id", postgresql_where="state = 'asked'"),
    )

    id: Mapped[Key]
    run_id: Mapped[UUID]
    client_id: Mapped[UUID]
    spec_digest: Mapped[Digest]
    epsilon: Mapped[float]
    state: Mapped[str] = mapped_column(String(16), default="asked")
    decided_by: Mapped[str | None] = mapped_column(String(16))
    decided_at: Mapped[Time | None]
    why: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[CreatedAt]
    queued_at: Mapped[Time | None]
    queued_count: Mapped[int] = mapped_column(default=0)


class JoinRequest(Base):
    """A client that wants to join a run that is not completed yet: a join round follows the run."""

    __tablename__ = "join_requests"

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), primary_key=True, index=True)
    created_at: Mapped[CreatedAt]
    # Once placed or dropped the request is history; ``why`` says why it was dropped.
    settled_at: Mapped[Time | None]
    why: Mapped[str] = mapped_column(Text, default="")


class AuditEvent(Base):
    """Who did what, when, in which request. Append-only; ``AuditOrder`` says in which order.

    Foreign keys are left out on purpose: the trail must outlive what it speaks of.
    """

    __tablename__ = "audit_events"
    __table_args__ = (
        Index(None, "run_id", "id"),
        Index(None, "client_id", "id"),
        Index(None, "kind", "id"),
    )

    id: Mapped[Key]
    at: Mapped[CreatedAt]
    kind: Mapped[str] = mapped_column(String(48))
    actor_scope: Mapped[str] = mapped_column(String(16))
    actor_token: Mapped[UUID | None]
    run_id: Mapped[UUID | None]
    round_number: Mapped[int | None]
    client_id: Mapped[UUID | None]
    request_id: Mapped[str] = mapped_column(String(64), default="")
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)


class AuditInbox(Base):
    """Events that were committed (or will be) and have no place in the trail yet; by trigger."""

    __tablename__ = "audit_inbox"

    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    event_id: Mapped[UUID]
    run_id: Mapped[UUID | None]


class AuditOrder(Base):
    """The order in which events became visible. Append-only.

    Ids are made before the commit, by clocks of several machines: of two events, the one with the
    smaller id may appear later. Positions never do, so they are what readers go by.
    """

    __tablename__ = "audit_order"
    __table_args__ = (Index(None, "run_id", "position"),)

    position: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    event_id: Mapped[UUID] = mapped_column(unique=True)
    run_id: Mapped[UUID | None]


class Rejection(Base):
    """An update that was refused: what was wrong with it, never its bytes. Append-only.

    An update without the promised noise may be a private gradient, so it is not kept.
    """

    __tablename__ = "rejections"
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
        ForeignKeyConstraint(
            ["run_id", "client_id"], ["run_clients.run_id", "run_clients.client_id"]
        ),
        Index(None, "run_id", "id"),
        Index(None, "client_id", "id"),
    )

    id: Mapped[Key]
    run_id: Mapped[UUID]
    round_number: Mapped[int]
    client_id: Mapped[UUID]
    work_id: Mapped[UUID | None] = mapped_column(ForeignKey("work_items.id"))
    update_id: Mapped[UUID]
    digest: Mapped[Digest]
    size: Mapped[int] = mapped_column(BigInteger)
    code: Mapped[str] = mapped_column(String(48))
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[CreatedAt]


class Erasure(Base):
    """Bytes of an accepted update that are deleted from the store, and why.

    Written before anything is deleted; ``done_at`` is set once the bytes are gone, so what a crash
    left undone is found and done. Never taken back.
    """

    __tablename__ = "erasures"
    __table_args__ = (
        CheckConstraint("reason IN ('retention', 'requested', 'revoked')", name="reason"),
        Index("ix_erasures_pending", "created_at", postgresql_where=text("done_at IS NULL")),
    )

    digest: Mapped[str] = mapped_column(ForeignKey("objects.digest"), primary_key=True)
    reason: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[CreatedAt]
    done_at: Mapped[Time | None]
