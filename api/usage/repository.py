"""SQL of quotas. One statement charges a request, or refuses it: replicas share the counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from api.db.base import uuid7
from api.db.engine import Database

# Windows begin with the minute and with the day of UTC, by the database's clock. The row of a
# token is locked while it is changed, so that no two requests pass on the same count. ``last``:
# the statement may run again after a broken connection, and must not charge twice.
_CHARGE = """
    WITH clock AS (
        SELECT date_trunc('minute', moment) AS minute, (moment AT TIME ZONE 'UTC')::date AS day
        FROM (SELECT clock_timestamp() + %(clock)s AS moment) AS now
    )
    INSERT INTO synthesis_usage AS u (token_id, minute, requests, day, rows, last)
    SELECT %(token_id)s, minute, 1, day, %(rows)s, %(last)s FROM clock
    ON CONFLICT (token_id) DO UPDATE SET
        minute = EXCLUDED.minute,
        day = EXCLUDED.day,
        last = EXCLUDED.last,
        requests = CASE WHEN u.last = EXCLUDED.last THEN u.requests
                        WHEN u.minute = EXCLUDED.minute THEN u.requests + 1 ELSE 1 END,
        rows = CASE WHEN u.last = EXCLUDED.last THEN u.rows
                    WHEN u.day = EXCLUDED.day THEN u.rows + EXCLUDED.rows ELSE EXCLUDED.rows END
    WHERE u.last = EXCLUDED.last OR (
        (u.minute <> EXCLUDED.minute OR u.requests < %(requests_limit)s)
        AND (u.day <> EXCLUDED.day OR u.rows + EXCLUDED.rows <= %(rows_limit)s)
    )
    RETURNING requests, rows
"""

_LOOK = """
    SELECT CASE WHEN u.minute = date_trunc('minute', moment) THEN u.requests ELSE 0 END,
           CASE WHEN u.day = (moment AT TIME ZONE 'UTC')::date THEN u.rows ELSE 0 END,
           moment
    FROM (SELECT clock_timestamp() + %(clock)s AS moment) AS now
    LEFT JOIN synthesis_usage AS u ON u.token_id = %(token_id)s
"""

_PAGE = """
    SELECT u.token_id, t.label, t.scope,
           CASE WHEN u.minute = date_trunc('minute', moment) THEN u.requests ELSE 0 END,
           CASE WHEN u.day = (moment AT TIME ZONE 'UTC')::date THEN u.rows ELSE 0 END
    FROM (SELECT clock_timestamp() + %(clock)s AS moment) AS now, synthesis_usage AS u
    JOIN tokens AS t ON t.id = u.token_id
    WHERE %(after)s::uuid IS NULL OR u.token_id > %(after)s::uuid
    ORDER BY u.token_id LIMIT %(limit)s
"""


@dataclass(frozen=True)
class Used:
    """Requests of this minute and rows of this day, both begun by ``at``."""

    requests: int
    rows: int
    at: datetime


async def charge(
    database: Database, token_id: UUID, rows: int, *, requests_limit: int, rows_limit: int
) -> tuple[int, int] | None:
    """(requests of this minute, rows of this day) with this one; None: it would be too many, and
    nothing was charged.
    """
    found = await database.act(
        _CHARGE,
        token_id=token_id,
        rows=rows,
        last=uuid7(),
        requests_limit=requests_limit,
        rows_limit=rows_limit,
    )
    return (found[0][0], found[0][1]) if found else None


async def used(database: Database, token_id: UUID) -> Used:
    requests, rows, at = (await database.glance(_LOOK, token_id=token_id))[0]
    return Used(requests or 0, rows or 0, at)


@dataclass(frozen=True)
class TokenUsed:
    token_id: UUID
    label: str
    scope: str
    requests: int
    rows: int


async def page(database: Database, after: UUID | None, limit: int) -> list[TokenUsed]:
    """Tokens that ever asked for rows, in the order of their ids."""
    found = await database.glance(_PAGE, after=after, limit=limit)
    return [TokenUsed(*row) for row in found]
