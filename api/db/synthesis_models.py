"""What is known of synthetic rows that were handed out: receipts, signing keys, quotas."""

from __future__ import annotations

from datetime import date
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from api.db.base import Base, CreatedAt, Json, Time


class SigningKey(Base):
    """An Ed25519 key; ``sealed`` is its private half under the token pepper. One key signs at a
    time. A retired key goes on verifying; a revoked one does not.
    """

    __tablename__ = "signing_keys"
    __table_args__ = (
        Index(
            "uq_signing_keys_active",
            text("(true)"),
            unique=True,
            postgresql_where=text("retired_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    public: Mapped[bytes] = mapped_column(LargeBinary(32))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[CreatedAt]
    retired_at: Mapped[Time | None]
    revoked_at: Mapped[Time | None]


class SynthesisUsage(Base):
    """What a token has had: requests of one minute, rows of one day (UTC). ``last``: the request
    that was charged last.
    """

    __tablename__ = "synthesis_usage"

    token_id: Mapped[UUID] = mapped_column(ForeignKey("tokens.id"), primary_key=True)
    minute: Mapped[Time]
    requests: Mapped[int]
    day: Mapped[date]
    rows: Mapped[int] = mapped_column(BigInteger)
    last: Mapped[UUID]


class IssuedReceipt(Base):
    """A receipt without its ``content``, which is added once, when all rows have been made."""

    __tablename__ = "receipts"
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
        Index(None, "run_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    run_id: Mapped[UUID]
    round_number: Mapped[int]
    body: Mapped[Json]
    content: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    created_at: Mapped[CreatedAt]
