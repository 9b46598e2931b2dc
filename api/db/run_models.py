"""Runs and what happens in them: rounds, leased work, updates, the ledger, jobs, the outbox."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from api.db.base import Base, CreatedAt, Digest, Json, Key, Time, uuid7

LIVE_WORK = "state IN ('ready', 'leased', 'done')"
LIVE_ROUND = (
    "state IN ('draft', 'open', 'closing', 'aggregating', 'keys', 'shares', 'confirming', "
    "'opening')"
)


class Run(Base):
    """A run and its immutable specification."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(
            "state IN ('draft', 'running', 'paused', 'completed', 'failed', 'cancelled')",
            name="state",
        ),
        # A pause has an end: a run that nobody resumes does not wait for ever.
        CheckConstraint("(state = 'paused') = (pause_ends IS NOT NULL)", name="pause_ends"),
        CheckConstraint("(state = 'paused') = (paused_at IS NOT NULL)", name="paused_at"),
        Index(None, "state", postgresql_where=text("state = 'running'")),
    )

    id: Mapped[Key]
    name: Mapped[str] = mapped_column(String(63), unique=True)
    state: Mapped[str] = mapped_column(String(16), default="draft")
    why: Mapped[str] = mapped_column(Text, default="")
    spec: Mapped[Json]
    spec_digest: Mapped[Digest]
    epsilon_planned: Mapped[float]
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Time | None]
    finished_at: Mapped[Time | None]
    paused_at: Mapped[Time | None]
    pause_ends: Mapped[Time | None]


class RunClient(Base):
    """A client's place in a run; ``position`` fixes the order in which sums are taken.

    Who is not ``founding`` came by a join and takes part in no round of the plan. Who has left
    or is quarantined gets no further work of this run; what was accepted of it stays.
    """

    __tablename__ = "run_clients"
    __table_args__ = (UniqueConstraint("run_id", "position"),)

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), primary_key=True, index=True)
    position: Mapped[int]
    founding: Mapped[bool] = mapped_column(server_default=text("true"))
    left_at: Mapped[Time | None]
    left_why: Mapped[str] = mapped_column(Text, server_default="", default="")
    quarantined_at: Mapped[Time | None]
    quarantine_why: Mapped[str] = mapped_column(Text, server_default="", default="")


class Round(Base):
    """One round; published rounds name the model that they made."""

    __tablename__ = "rounds"
    __table_args__ = (
        CheckConstraint(
            "state IN ('draft', 'open', 'closing', 'aggregating', 'keys', 'shares', 'confirming', "
            "'opening', 'published', 'failed', 'abandoned')",
            name="state",
        ),
        CheckConstraint("number >= 0", name="number"),
        CheckConstraint(
            "(state = 'published') = (frame_digest IS NOT NULL AND weights_digest IS NOT NULL "
            "AND optimiser_digest IS NOT NULL AND published_at IS NOT NULL)",
            name="published",
        ),
        CheckConstraint(
            "state IN ('draft', 'failed', 'abandoned') OR deadline IS NOT NULL", name="deadline"
        ),
        # One round of a run at a time.
        Index(
            "uq_rounds_live",
            "run_id",
            unique=True,
            postgresql_where=text(LIVE_ROUND),
        ),
    )

    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16), default="draft")
    why: Mapped[str] = mapped_column(Text, default="")
    deadline: Mapped[Time | None]
    extended: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[CreatedAt]
    opened_at: Mapped[Time | None]
    closed_at: Mapped[Time | None]
    published_at: Mapped[Time | None]
    frame_digest: Mapped[str | None] = mapped_column(ForeignKey("objects.digest"), index=True)
    weights_digest: Mapped[str | None] = mapped_column(ForeignKey("objects.digest"), index=True)
    optimiser_digest: Mapped[str | None] = mapped_column(ForeignKey("objects.digest"))


class JoinMember(Base):
    """A client of a join round. Append-only; a trigger refuses a client that has a code."""

    __tablename__ = "join_members"
    __table_args__ = (
        CheckConstraint("round_number > 0", name="round_number"),
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
        ForeignKeyConstraint(
            ["run_id", "client_id"], ["run_clients.run_id", "run_clients.client_id"]
        ),
    )

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    round_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    client_id: Mapped[UUID] = mapped_column(primary_key=True, index=True)


class LedgerEntry(Base):
    """Append-only: a trigger refuses UPDATE, DELETE and TRUNCATE.

    ``reserve_id`` is unique: one reservation has one outcome. A trigger checks that it names a
    reservation; the composite key, that it is one of the same account.
    """

    __tablename__ = "ledger_entries"
    __table_args__ = (
        CheckConstraint("kind IN ('reserve', 'commit', 'lost')", name="kind"),
        CheckConstraint("(kind = 'reserve') = (event IS NOT NULL)", name="event"),
        CheckConstraint("(kind = 'reserve') = (reserve_id IS NULL)", name="outcome"),
        CheckConstraint("attempt >= 1", name="attempt"),
        ForeignKeyConstraint(
            ["reserve_id", "account_id"], ["ledger_entries.id", "ledger_entries.account_id"]
        ),
        ForeignKeyConstraint(["client_id", "account_id"], ["clients.id", "clients.account_id"]),
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
        ForeignKeyConstraint(
            ["run_id", "client_id"], ["run_clients.run_id", "run_clients.client_id"]
        ),
        UniqueConstraint("id", "account_id"),
        Index(
            "uq_ledger_entries_one_outcome",
            "reserve_id",
            unique=True,
            postgresql_where=text("kind <> 'reserve'"),
        ),
        Index(
            "uq_ledger_entries_one_reservation",
            "run_id",
            "round_number",
            "client_id",
            "attempt",
            unique=True,
            postgresql_where=text("kind = 'reserve'"),
        ),
        Index(None, "account_id"),
        Index(None, "client_id", "id"),
    )

    id: Mapped[Key]
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    client_id: Mapped[UUID]
    run_id: Mapped[UUID]
    round_number: Mapped[int]
    attempt: Mapped[int] = mapped_column(SmallInteger)
    kind: Mapped[str] = mapped_column(String(8))
    reserve_id: Mapped[UUID | None]
    event: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    at: Mapped[CreatedAt]


class WorkItem(Base):
    """One attempt of one client in one round, handed out under a lease.

    ``excluded``: no order was made, because the ledger refused the reservation.
    """

    __tablename__ = "work_items"
    __table_args__ = (
        CheckConstraint(
            "state IN ('ready', 'leased', 'done', 'lost', 'refused', 'excluded')", name="state"
        ),
        CheckConstraint("attempt >= 1", name="attempt"),
        CheckConstraint("(state = 'excluded') = (reservation_id IS NULL)", name="reservation"),
        CheckConstraint("state <> 'leased' OR lease_expires IS NOT NULL", name="lease"),
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
        ForeignKeyConstraint(
            ["run_id", "client_id"], ["run_clients.run_id", "run_clients.client_id"]
        ),
        UniqueConstraint("run_id", "round_number", "client_id", "attempt"),
        Index(
            "uq_work_items_live",
            "run_id",
            "round_number",
            "client_id",
            unique=True,
            postgresql_where=text(LIVE_WORK),
        ),
        Index(
            "ix_work_items_offered",
            "client_id",
            postgresql_where=text("state IN ('ready', 'leased')"),
        ),
    )

    id: Mapped[Key]
    run_id: Mapped[UUID]
    round_number: Mapped[int]
    client_id: Mapped[UUID]
    attempt: Mapped[int] = mapped_column(SmallInteger)
    state: Mapped[str] = mapped_column(String(16), default="ready")
    reason: Mapped[str] = mapped_column(Text, default="")
    reservation_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("ledger_entries.id"), unique=True
    )
    created_at: Mapped[CreatedAt]
    available_at: Mapped[Time]
    leased_at: Mapped[Time | None]
    lease_expires: Mapped[Time | None]
    finished_at: Mapped[Time | None]
    queued_at: Mapped[Time | None]
    queued_count: Mapped[int] = mapped_column(default=0)


class Update(Base):
    """An accepted update. Immutable; one a client and round. ``attestation``: of a secure sum, what
    the client has signed of its masks (``core.secagg.messages.Attestation``).
    """

    __tablename__ = "updates"
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
        ForeignKeyConstraint(
            ["run_id", "client_id"], ["run_clients.run_id", "run_clients.client_id"]
        ),
        UniqueConstraint("run_id", "round_number", "client_id"),
        UniqueConstraint("client_id", "update_id"),
        CheckConstraint("attestation ~ '^[0-9a-f]{128}$'", name="attestation"),
        Index(None, "digest"),
    )

    id: Mapped[Key]
    update_id: Mapped[UUID]
    run_id: Mapped[UUID]
    round_number: Mapped[int]
    client_id: Mapped[UUID]
    work_id: Mapped[UUID] = mapped_column(ForeignKey("work_items.id"), unique=True)
    digest: Mapped[str] = mapped_column(ForeignKey("objects.digest"))
    size: Mapped[int] = mapped_column(BigInteger)
    attestation: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[CreatedAt]


class Job(Base):
    """Work of the coordinator's own worker, leased like a client's; repeating it is harmless."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("kind IN ('aggregate', 'replay')", name="kind"),
        CheckConstraint("state IN ('ready', 'leased', 'done', 'failed')", name="state"),
        CheckConstraint("(state = 'done') = (result IS NOT NULL)", name="result"),
        ForeignKeyConstraint(["run_id", "round_number"], ["rounds.run_id", "rounds.number"]),
        # A round is summed once; it may be replayed as often as somebody asks.
        Index(
            "uq_jobs_one_aggregation",
            "run_id",
            "round_number",
            unique=True,
            postgresql_where=text("kind = 'aggregate'"),
        ),
        Index(None, "run_id", "round_number"),
    )

    id: Mapped[Key]
    kind: Mapped[str] = mapped_column(String(16), default="aggregate")
    run_id: Mapped[UUID]
    round_number: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), default="ready")
    reason: Mapped[str] = mapped_column(Text, default="")
    attempt: Mapped[int] = mapped_column(SmallInteger, default=0)
    created_at: Mapped[CreatedAt]
    available_at: Mapped[Time]
    lease_expires: Mapped[Time | None]
    finished_at: Mapped[Time | None]
    queued_at: Mapped[Time | None]
    queued_count: Mapped[int] = mapped_column(default=0)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class OutboxMessage(Base):
    """A Celery message to send after the commit of the row that it announces; at least once.
    ``trace``: the trace to which it belongs, as a ``traceparent``, if there are traces.
    """

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_unsent", "id", postgresql_where=text("sent_at IS NULL")),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    task: Mapped[str] = mapped_column(String(64))
    queue: Mapped[str] = mapped_column(String(32))
    subject: Mapped[UUID]
    trace: Mapped[str | None] = mapped_column(String(55))
    created_at: Mapped[CreatedAt]
    sent_at: Mapped[Time | None]
