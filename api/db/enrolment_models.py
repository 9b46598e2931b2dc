"""Enrolments: a one-time code, what came of it, and who said yes."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, String, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from api.db.base import Base, CreatedAt, Key, Time

DECISIONS = ("approved", "refused", "withdrawn", "expired")


class Enrolment(Base):
    """A code is used once. ``wanted`` is the client to be made; without it, the code gives a
    new token to ``client_id``. Of code and token only HMACs are kept.
    """

    __tablename__ = "enrolments"
    __table_args__ = (
        CheckConstraint(
            "decision IN ('approved', 'refused', 'withdrawn', 'expired')", name="decision"
        ),
        CheckConstraint("(decision IS NULL) = (decided_at IS NULL)", name="decided"),
        CheckConstraint(
            "(redeemed_at IS NULL) = (token_mac IS NULL) "
            "AND (redeemed_at IS NULL) = (fingerprint IS NULL)",
            name="redeemed",
        ),
        CheckConstraint(
            "decision <> 'approved' OR (client_id IS NOT NULL AND token_mac IS NOT NULL)",
            name="approved",
        ),
        CheckConstraint("wanted IS NOT NULL OR client_id IS NOT NULL", name="somebody"),
        Index("uq_enrolments_open", "name", unique=True, postgresql_where=text("decision IS NULL")),
    )

    id: Mapped[Key]
    code_mac: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    name: Mapped[str] = mapped_column(String(63))
    wanted: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    client_id: Mapped[UUID | None] = mapped_column(ForeignKey("clients.id"), index=True)
    automatic: Mapped[bool]
    token_s: Mapped[float]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Time]
    redeemed_at: Mapped[Time | None]
    token_mac: Mapped[bytes | None] = mapped_column(LargeBinary(32), unique=True)
    fingerprint: Mapped[str | None] = mapped_column(String(9))
    agent: Mapped[str] = mapped_column(String(200), default="")
    address: Mapped[str] = mapped_column(String(64), default="")
    decided_at: Mapped[Time | None]
    decision: Mapped[str | None] = mapped_column(String(16))
    why: Mapped[str] = mapped_column(Text, default="")
