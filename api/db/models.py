"""Who takes part and what is stored: spaces, accounts, clients, tokens, objects, request keys.

Tables of runs are in ``api.db.run_models``, those of oversight in ``api.db.oversight_models``.
Rules that must hold whatever the code does stand in the schema: CHECK, UNIQUE and FOREIGN KEY
here, triggers (immutable columns, append-only tables) in the migration.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from api.db.base import Base, CreatedAt, Digest, Json, Key, Time

SCOPES = ("admin", "client", "worker", "scientist", "auditor")


class Space(Base):
    """An embedding-space contract. Immutable."""

    __tablename__ = "spaces"

    id: Mapped[Key]
    name: Mapped[str] = mapped_column(String(63), unique=True)
    digest: Mapped[Digest]
    body: Mapped[Json]
    created_at: Mapped[CreatedAt]


class Account(Base):
    """A privacy account: all clients over one population of one site share it, in one unit."""

    __tablename__ = "accounts"
    __table_args__ = (UniqueConstraint("site", "population"),)

    id: Mapped[Key]
    site: Mapped[str] = mapped_column(String(200))
    population: Mapped[str] = mapped_column(String(200))
    unit: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[CreatedAt]


class Client(Base):
    """A site's participant: one data set in one embedding space.

    Immutable but for its budget, for its identity key, and for its revocation, which is final.
    """

    __tablename__ = "clients"
    __table_args__ = (
        CheckConstraint("budget_epsilon > 0 AND budget_epsilon <= 100", name="budget_epsilon"),
        CheckConstraint("budget_delta > 0 AND budget_delta < 1", name="budget_delta"),
        CheckConstraint("identity_key ~ '^[0-9a-f]{64}$'", name="identity_key"),
        # Ledger rows name both and must not mix them.
        UniqueConstraint("id", "account_id"),
    )

    id: Mapped[Key]
    name: Mapped[str] = mapped_column(String(63), unique=True)
    space_id: Mapped[UUID] = mapped_column(ForeignKey("spaces.id"), index=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"), index=True)
    # What mixtures may call it by together with others: a scanner, a region, an age group.
    domain: Mapped[str | None] = mapped_column(String(63))
    managed: Mapped[bool]
    budget_epsilon: Mapped[float]
    budget_delta: Mapped[float]
    created_at: Mapped[CreatedAt]
    revoked_at: Mapped[Time | None]
    revoked_why: Mapped[str] = mapped_column(Text, server_default="", default="")
    # The Ed25519 key with which its site signs in secure sums, in hexadecimal.
    identity_key: Mapped[str | None] = mapped_column(String(64))

    space: Mapped[Space] = relationship(lazy="joined", innerjoin=True)
    account: Mapped[Account] = relationship(lazy="joined", innerjoin=True)


class Token(Base):
    """A bearer token; only its HMAC is kept."""

    __tablename__ = "tokens"
    __table_args__ = (
        CheckConstraint(
            "scope IN ('admin', 'client', 'worker', 'scientist', 'auditor')", name="scope"
        ),
        CheckConstraint("(scope = 'client') = (client_id IS NOT NULL)", name="client_scope"),
    )

    id: Mapped[Key]
    scope: Mapped[str] = mapped_column(String(16))
    label: Mapped[str] = mapped_column(String(100))
    client_id: Mapped[UUID | None] = mapped_column(ForeignKey("clients.id"), index=True)
    mac: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Time | None]
    revoked_at: Mapped[Time | None]
    # So long its replacement lives. None: no longer than this one, replaced or not.
    renewal_s: Mapped[float | None]
    replaced_by: Mapped[UUID | None] = mapped_column(ForeignKey("tokens.id"), unique=True)


class StoredObject(Base):
    """Bytes that the object store holds under their digest. Written once."""

    __tablename__ = "objects"
    __table_args__ = (CheckConstraint("size >= 0", name="size"),)

    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[CreatedAt]


class IdempotencyKey(Base):
    """What a POST with this key answered; inserted first, so that two at once cannot both act."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    token_id: Mapped[UUID] = mapped_column(ForeignKey("tokens.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_digest: Mapped[Digest]
    response: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    created_at: Mapped[CreatedAt]
