"""What is known of synthetic rows: receipts, signing keys, quotas, files that workers make."""

from __future__ import annotations

from datetime import date
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from api.db.base import Base, CreatedAt, Digest, Json, Key, Time


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


class SynthesisJob(Base):
    """A file of rows that a worker makes under a lease; making it again gives the same bytes.

    ``request`` has clients in place of domains. ``expires_at``: then the file of a job that is done
    is deleted. What ends a job is final.
    """

    __tablename__ = "synthesis_jobs"
    __table_args__ = (
        CheckConstraint(
            "state IN ('ready', 'leased', 'done', 'failed', 'cancelled', 'expired')", name="state"
        ),
        CheckConstraint("state <> 'leased' OR lease_expires IS NOT NULL", name="lease"),
        CheckConstraint(
            "state NOT IN ('done', 'expired') OR (size IS NOT NULL AND receipt_id IS NOT NULL "
            "AND expires_at IS NOT NULL)",
            name="done",
        ),
        CheckConstraint("rows_done BETWEEN 0 AND rows", name="rows_done"),
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
        Index(None, "token_id", "id"),
        Index(
            "ix_synthesis_jobs_open",
            "state",
            postgresql_where=text("state IN ('ready', 'leased', 'done')"),
        ),
    )

    id: Mapped[Key]
    token_id: Mapped[UUID] = mapped_column(ForeignKey("tokens.id"))
    run_id: Mapped[UUID]
    round_number: Mapped[int]
    request: Mapped[Json]
    seed: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str] = mapped_column(String(16))
    rows: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16), default="ready")
    reason: Mapped[str] = mapped_column(Text, default="")
    attempt: Mapped[int] = mapped_column(SmallInteger, default=0)
    rows_done: Mapped[int] = mapped_column(BigInteger, default=0)
    size: Mapped[int | None] = mapped_column(BigInteger)
    receipt_id: Mapped[str | None] = mapped_column(ForeignKey("receipts.id"))
    created_at: Mapped[CreatedAt]
    available_at: Mapped[Time]
    lease_expires: Mapped[Time | None]
    finished_at: Mapped[Time | None]
    expires_at: Mapped[Time | None]
    queued_at: Mapped[Time | None]
    queued_count: Mapped[int] = mapped_column(default=0)


class SynthesisPart(Base):
    """A piece of a job's file, in order. Parts of attempts that were lost are deleted with the
    job's others, unless something else names their bytes.
    """

    __tablename__ = "synthesis_parts"
    __table_args__ = (
        CheckConstraint("size > 0", name="size"),
        CheckConstraint("number >= 0", name="number"),
        Index(None, "digest"),
    )

    job_id: Mapped[UUID] = mapped_column(ForeignKey("synthesis_jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[Digest]
    size: Mapped[int] = mapped_column(BigInteger)


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
