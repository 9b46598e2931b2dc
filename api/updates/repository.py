"""SQL of updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb
from sqlalchemy import or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.base import uuid7
from api.db.engine import Database
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
# Everything that an update changes once it counts, in one statement: its row and its object's, the
# end of its work, the ledger's commit, the event that tells of it. All of it follows from ``held``,
# which is empty unless the update may count, as things are once the locks are held. Locks in the
# order of everywhere: the round (it cannot close until this is committed), then the work. A test
# holds the order.
COUNT = """
WITH held AS (
    SELECT r.run_id, r.number, w.client_id, w.id AS work_id, w.attempt,
           l.id AS reservation_id, l.account_id
    FROM rounds r
    JOIN work_items w ON w.run_id = r.run_id AND w.round_number = r.number
    JOIN ledger_entries l ON l.id = w.reservation_id
    WHERE r.run_id = %(run_id)s AND r.number = %(number)s AND r.state = ANY(%(open)s)
      AND w.id = %(work_id)s AND w.state = 'leased'
    FOR SHARE OF r FOR NO KEY UPDATE OF w
), bytes AS (
    INSERT INTO objects (digest, size) SELECT %(digest)s, %(size)s FROM held ON CONFLICT DO NOTHING
), ended AS (
    UPDATE work_items SET state = 'done', finished_at = clock_timestamp() + %(clock)s
    FROM held WHERE work_items.id = held.work_id
), told AS (
    INSERT INTO audit_events
        (id, kind, actor_scope, actor_token, run_id, round_number, client_id, request_id, detail)
    SELECT %(event_id)s, %(kind)s, %(actor_scope)s, %(actor_token)s, run_id, number, client_id,
           %(request_id)s, %(detail)s
    FROM held
), paid AS (
    INSERT INTO ledger_entries
        (id, account_id, client_id, run_id, round_number, attempt, kind, reserve_id)
    SELECT %(entry_id)s, account_id, client_id, run_id, number, attempt, 'commit', reservation_id
    FROM held
), counted AS (
    INSERT INTO updates
        (id, update_id, run_id, round_number, client_id, work_id, digest, size, attestation)
    SELECT %(id)s, %(update_id)s, run_id, number, client_id, work_id, %(digest)s, %(size)s,
           %(attestation)s
    FROM held
)
SELECT (SELECT count(*) FROM (
            SELECT FROM work_items o
            WHERE o.run_id = held.run_id AND o.round_number = held.number
              AND o.state IN ('ready', 'leased') AND o.id <> held.work_id
            LIMIT %(many)s) others) = %(many)s
FROM held
"""


async def count(
    database: Database,
    *,
    update_id: UUID,
    run_id: UUID,
    number: int,
    work_id: UUID,
    open_states: Sequence[str],
    digest: str,
    size: int,
    attestation: str | None,
    event: Mapping[str, Any],
) -> bool | None:
    """Count an update; None, and nothing has changed, unless its round is in one of these states
    and its work is leased. Else: is it not the last one of its round, whoever counts at the same
    moment? ``event``: the columns of ``api.audit.row``. Raises ``psycopg.IntegrityError`` where
    another update has won.

    Run again it finds the work done, and does nothing.
    """
    told = {name: event[name] for name in ("kind", "actor_scope", "actor_token", "request_id")}
    found = await database.act(
        COUNT,
        id=uuid7(), update_id=update_id, run_id=run_id, number=number, work_id=work_id,
        open=list(open_states), digest=digest, size=size, attestation=attestation,
        entry_id=uuid7(), many=MANY,
        event_id=event["id"], detail=Jsonb(event["detail"]), **told,
    )  # fmt: skip
    return bool(found[0][0]) if found else None


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
