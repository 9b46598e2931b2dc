"""SQL of leased work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from api.db.engine import Database
from api.db.run_models import WorkItem

# At least what a poll may give: by the index of offered work, and by plans that await an answer in
# runs (or joins) that go on. A site that never answered does not make every later poll a write.
OFFERED = """
SELECT 1 FROM work_items
WHERE client_id = %(client_id)s AND state IN ('ready', 'leased')
  AND available_at <= clock_timestamp() + %(clock)s
UNION ALL
SELECT 1 FROM consents c JOIN runs r ON r.id = c.run_id
WHERE c.client_id = %(client_id)s AND c.state = 'asked' AND (
  r.state IN ('draft', 'running', 'paused') OR EXISTS (
    SELECT FROM rounds o WHERE o.run_id = r.id AND o.state IN ('draft', 'open')))
UNION ALL
SELECT 1 FROM sum_steps s JOIN rounds o ON o.run_id = s.run_id AND o.number = s.round_number
WHERE s.client_id = %(client_id)s AND s.state = 'asked'
  AND o.state IN ('keys', 'shares', 'confirming', 'opening')
LIMIT 1
"""


# What a client should do: first what it has begun, then the oldest offer; leased from now. A run
# that has failed has no open round, a paused one makes no offers. Work of a run that the site has
# not approved is never made; if it were, it would not be found. One statement, because the sites of
# a round of a thousand clients run it a thousand times within a few seconds.
LEASE = """
WITH found AS (
    SELECT w.id, w.run_id, w.round_number, w.client_id, w.attempt, w.leased_at IS NULL AS first,
           c.name, m.position, clock_timestamp() + %(clock)s AS now,
           make_interval(secs => (runs.spec #>> '{plan,round,lease_s}')::float8) AS lease
    FROM work_items w
    JOIN rounds r ON r.run_id = w.run_id AND r.number = w.round_number
    JOIN runs ON runs.id = w.run_id
    JOIN clients c ON c.id = w.client_id
    JOIN run_clients m ON m.run_id = w.run_id AND m.client_id = w.client_id
    WHERE w.client_id = %(client_id)s
      AND (%(run_id)s::uuid IS NULL OR w.run_id = %(run_id)s)
      AND (w.state = 'leased' OR (w.state = 'ready' AND runs.state <> 'paused'))
      AND w.available_at <= clock_timestamp() + %(clock)s
      AND r.state = 'open'
      AND EXISTS (SELECT FROM consents s WHERE s.run_id = w.run_id AND s.client_id = w.client_id
                  AND s.state = 'approved')
    ORDER BY w.state, w.id
    LIMIT 1
    FOR NO KEY UPDATE OF w
), leased AS (
    UPDATE work_items SET state = 'leased', lease_expires = found.now + found.lease,
        leased_at = coalesce(work_items.leased_at, found.now)
    FROM found WHERE work_items.id = found.id
), told AS (
    INSERT INTO audit_events
        (id, kind, actor_scope, actor_token, run_id, round_number, client_id, request_id, detail)
    SELECT %(event_id)s, %(kind)s, %(actor_scope)s, %(actor_token)s, run_id, round_number,
           client_id, %(request_id)s, jsonb_build_object('work', id, 'attempt', attempt)
    FROM found WHERE first
)
SELECT id, run_id, round_number, client_id, attempt, name, position FROM found
"""


@dataclass(frozen=True)
class Leased:
    """An attempt that its client has just taken (again); its name and its place in the run."""

    id: UUID
    run_id: UUID
    round_number: int
    client_id: UUID
    attempt: int
    client: str
    position: int


async def lease_next(
    database: Database, client_id: UUID, run_id: UUID | None, event: Mapping[str, Any]
) -> Leased | None:
    """The client's next attempt (of one run), leased from now; one that it holds comes again.

    ``event``: the columns of ``api.audit.row``; it is told of once an attempt. Run again the
    statement finds the same attempt, and its lease begins a moment later.
    """
    told = {name: event[name] for name in ("kind", "actor_scope", "actor_token", "request_id")} | {
        "event_id": event["id"]
    }
    rows = await database.act(LEASE, client_id=client_id, run_id=run_id, **told)
    return Leased(*rows[0]) if rows else None


async def locked(session: AsyncSession, work_id: UUID) -> WorkItem | None:
    found: WorkItem | None = await session.scalar(
        select(WorkItem)
        .where(WorkItem.id == work_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return found


async def one(session: AsyncSession, work_id: UUID) -> WorkItem | None:
    return await session.get(WorkItem, work_id)
