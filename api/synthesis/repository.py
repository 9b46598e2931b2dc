"""SQL that every request for rows needs: one statement before, one after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from api.db.engine import Database
from core.receipts.receipt import Receipt

# Of a run by its id or name: its published round (the newest one, or that number), and those of
# its clients that were revoked after they released something.
_FIND = """
    SELECT runs.id, found.number, ARRAY(
        SELECT clients.name FROM run_clients JOIN clients ON clients.id = run_clients.client_id
        WHERE run_clients.run_id = runs.id AND clients.revoked_at IS NOT NULL
        AND EXISTS (SELECT FROM updates WHERE updates.run_id = runs.id
                    AND updates.client_id = clients.id AND updates.round_number <= found.number)
        ORDER BY clients.name
    )
    FROM runs LEFT JOIN LATERAL (
        SELECT number FROM rounds WHERE run_id = runs.id AND state = 'published'
        AND (%(number)s::int IS NULL OR number = %(number)s::int)
        ORDER BY number DESC LIMIT 1
    ) AS found ON true
    WHERE runs.id = %(id)s::uuid OR runs.name = %(name)s
    ORDER BY (runs.id = %(id)s::uuid) DESC NULLS LAST LIMIT 1
"""

# A receipt, new or known, and the event that rows were handed out.
_RECORD = """
    WITH receipt AS (
        INSERT INTO receipts (id, run_id, round_number, body, content)
        VALUES (%(receipt_id)s, %(run_id)s, %(round_number)s, %(body)s, %(content)s)
        ON CONFLICT (id) DO UPDATE SET content = EXCLUDED.content
        WHERE receipts.content IS NULL AND EXCLUDED.content IS NOT NULL
    )
    INSERT INTO audit_events
        (id, kind, actor_scope, actor_token, run_id, round_number, request_id, detail)
    VALUES (%(event_id)s, %(kind)s, %(actor_scope)s, %(actor_token)s, %(run_id)s,
            %(round_number)s, %(request_id)s, %(detail)s)
    ON CONFLICT (id) DO NOTHING RETURNING id
"""


@dataclass(frozen=True)
class Found:
    """``round``: None if no such round is published. ``withdrawn``: names, sorted."""

    run_id: UUID
    round: int | None
    withdrawn: tuple[str, ...]


async def find(database: Database, id_or_name: str, number: int | None) -> Found | None:
    try:
        run_id = str(UUID(id_or_name))
    except ValueError:
        run_id = None
    rows = await database.glance(_FIND, id=run_id, name=id_or_name, number=number)
    return None if not rows else Found(rows[0][0], rows[0][1], tuple(rows[0][2]))


async def record(database: Database, receipt: Receipt, event: dict[str, Any]) -> None:
    """Write down that rows were handed out. ``event``: the columns of ``api.audit.row``. Run again
    it finds its event, and does nothing.
    """
    content = receipt.content
    await database.act(
        _RECORD,
        receipt_id=receipt.id,
        body=Jsonb(receipt.model_dump(mode="json", exclude={"content"})),
        content=None if content is None else Jsonb(content.model_dump(mode="json")),
        run_id=event["run_id"],
        round_number=event["round_number"],
        event_id=event["id"],
        kind=event["kind"],
        actor_scope=event["actor_scope"],
        actor_token=event["actor_token"],
        request_id=event["request_id"],
        detail=Jsonb(event["detail"]),
    )
