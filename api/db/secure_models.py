"""Secure sums: the session of a round's sum, and what each client was asked and has answered."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from api.db.base import Base, CreatedAt, Json, Key, Time


class SecureSum(Base):
    """A round's sum. Immutable but for ``transcript``, which is set once: the object that opens it.

    ``session``: ``core.secagg.messages.Session``.
    """

    __tablename__ = "secure_sums"
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
    )

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    round_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    session: Mapped[Json]
    transcript: Mapped[str | None] = mapped_column(ForeignKey("objects.digest"))
    created_at: Mapped[CreatedAt]


class SumStep(Base):
    """A step that a client was asked for. It is answered or declined once; a trigger keeps that.

    ``body``: the answer (``core.wire.secure.StepAnswer``).
    """

    __tablename__ = "sum_steps"
    __table_args__ = (
        CheckConstraint("step IN ('keys', 'shares', 'confirm', 'open')", name="step"),
        CheckConstraint("state IN ('asked', 'answered', 'declined')", name="state"),
        CheckConstraint("(state = 'answered') = (body IS NOT NULL)", name="body"),
        CheckConstraint("(state = 'asked') = (answered_at IS NULL)", name="answered"),
        ForeignKeyConstraint(
            ["run_id", "round_number"], ["secure_sums.run_id", "secure_sums.round_number"]
        ),
        ForeignKeyConstraint(
            ["run_id", "client_id"], ["run_clients.run_id", "run_clients.client_id"]
        ),
        UniqueConstraint("run_id", "round_number", "client_id", "step"),
        Index("ix_sum_steps_asked", "client_id", postgresql_where=text("state = 'asked'")),
    )

    id: Mapped[Key]
    run_id: Mapped[UUID]
    round_number: Mapped[int]
    client_id: Mapped[UUID]
    step: Mapped[str] = mapped_column(String(8))
    state: Mapped[str] = mapped_column(String(8), default="asked")
    body: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    reason: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[CreatedAt]
    answered_at: Mapped[Time | None]
    queued_at: Mapped[Time | None]
    queued_count: Mapped[int] = mapped_column(default=0)
