"""What the dashboard needs beside everything else: who is signed in, and who was heard of when."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from api.db.base import Base, CreatedAt, Key, Time


class DashboardSession(Base):
    """A browser that has signed in with a token. Only an HMAC of its cookie is kept."""

    __tablename__ = "dashboard_sessions"

    id: Mapped[Key]
    token_id: Mapped[UUID] = mapped_column(ForeignKey("tokens.id"), index=True)
    mac: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    created_at: Mapped[CreatedAt]
    seen_at: Mapped[Time]
    expires_at: Mapped[Time]


class ClientSighting(Base):
    """When a client's agent asked for work last, and its version (empty: it did not say)."""

    __tablename__ = "client_sightings"

    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), primary_key=True)
    at: Mapped[Time]
    version: Mapped[str] = mapped_column(String(40))
