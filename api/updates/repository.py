"""SQL of updates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.db.models import StoredObject
from api.db.oversight_models import Erasure
from api.db.run_models import Update

# Everything about where an update is meant to go, and what this client has sent before that it
# could be: one row, whatever exists. Without ``client_id`` the work says whose update it is.
TARGET = """
SELECT runs.spec_digest,
       r.state,
       EXISTS (SELECT 1 FROM run_clients m
               WHERE m.run_id = runs.id AND m.client_id = who.client_id),
       w.id, w.run_id, w.round_number, w.client_id, w.attempt, w.state,
       c.managed,
       EXISTS (SELECT 1 FROM updates u
               WHERE u.client_id = who.client_id
                 AND (u.update_id = %(update_id)s
                      OR (u.run_id = %(run_id)s AND u.round_number = %(number)s)))
FROM (SELECT 1) one
LEFT JOIN work_items w ON w.id = %(work_id)s
LEFT JOIN clients c ON c.id = w.client_id
CROSS JOIN LATERAL (SELECT coalesce(%(client_id)s, w.client_id) AS client_id) who
LEFT JOIN runs ON runs.id = %(run_id)s
LEFT JOIN rounds r ON r.run_id = runs.id AND r.number = %(number)s
"""
# Does anybody still hold or wait for work of a round?
STILL_OUT = """
SELECT 1 FROM work_items
WHERE run_id = %(run_id)s AND round_number = %(number)s AND state IN ('ready', 'leased')
LIMIT 1
"""
# More than count updates of one round at the same moment, but for bad luck (which costs the sweeper
# its own pace).
MANY = 16
# Locks in the order of everywhere: the round (it cannot close until this transaction ends), then
# the work. A test holds the order.
_HELD = text(
    """
    SELECT r.state, w.id, w.state, w.reservation_id, w.attempt, clock_timestamp(),
           (SELECT count(*) FROM (
                SELECT FROM work_items o
                WHERE o.run_id = r.run_id AND o.round_number = r.number
                  AND o.state IN ('ready', 'leased') AND o.id <> w.id
                LIMIT :many) others) = :many
    FROM rounds r
    JOIN work_items w ON w.run_id = r.run_id AND w.round_number = r.number
    WHERE r.run_id = :run_id AND r.number = :number AND w.id = :work_id
    FOR SHARE OF r FOR NO KEY UPDATE OF w
    """
)
_COUNT = text(
    """
    WITH bytes AS (
        INSERT INTO objects (digest, size) VALUES (:digest, :size) ON CONFLICT DO NOTHING
    ), ended AS (
        UPDATE work_items SET state = 'done', finished_at = :now WHERE id = :work_id
    ), told AS (
        INSERT INTO audit_events
            (id, kind, actor_scope, actor_token, run_id, round_number, client_id, request_id,
             detail)
        VALUES (:event_id, :kind, :actor_scope, :actor_token, :run_id, :number, :client_id,
                :request_id, CAST(:detail AS jsonb))
    )
    INSERT INTO updates
        (id, update_id, run_id, round_number, client_id, work_id, digest, size)
    VALUES (:id, :update_id, :run_id, :number, :client_id, :work_id, :digest, :size)
    """
)


@dataclass(frozen=True)
class Held:
    """A round and a work of it, both locked, as they are now."""

    round_state: str
    work_id: UUID
    work_state: str
    reservation_id: UUID | None
    attempt: int
    now: datetime
    many_out: bool  # this is not the last update of its round, whoever counts at the same moment


async def held(session: AsyncSession, run_id: UUID, number: int, work_id: UUID) -> Held | None:
    values = {"run_id": run_id, "number": number, "work_id": work_id, "many": MANY}
    row = (await session.execute(_HELD, values)).first()
    return None if row is None else Held(*row)


async def count(
    session: AsyncSession,
    *,
    update_id: UUID,
    run_id: UUID,
    number: int,
    client_id: UUID,
    work_id: UUID,
    digest: str,
    size: int,
    now: datetime,
    event: dict[str, Any],
) -> None:
    """The update's row, its object's, the end of its work, and the event that tells of it (the
    columns of ``api.audit.row``): one statement, because every update pays for it.
    """
    await session.execute(
        _COUNT,
        {
            "id": uuid7(), "update_id": update_id, "run_id": run_id, "number": number,
            "client_id": client_id, "work_id": work_id, "digest": digest, "size": size, "now": now,
            "event_id": event["id"], "detail": json.dumps(event["detail"]),
            **{name: event[name] for name in ("kind", "actor_scope", "actor_token", "request_id")},
        },
    )  # fmt: skip


async def existing(
    session: AsyncSession, *, run_id: UUID, number: int, client_id: UUID, update_id: UUID
) -> Update | None:
    """The client's update of this round, or one that it sent elsewhere under the same id."""
    query = (
        select(Update)
        .where(
            Update.client_id == client_id,
            or_(
                Update.update_id == update_id,
                (Update.run_id == run_id) & (Update.round_number == number),
            ),
        )
        .order_by((Update.run_id == run_id).desc(), (Update.round_number == number).desc())
        .limit(1)
    )
    found: Update | None = await session.scalar(query)
    return found


async def remember_object(session: AsyncSession, digest: str, size: int) -> None:
    """The row of stored bytes; the same bytes may come from several places."""
    await session.execute(
        insert(StoredObject).values(digest=digest, size=size).on_conflict_do_nothing()
    )


async def was_erased(session: AsyncSession, digest: str) -> bool:
    """A trigger refuses such bytes as an update: they may be gone from the store by now."""
    return await session.get(Erasure, digest) is not None
