"""Reads of the site's ledger: where attempts stand, and which bytes are stored for them."""

from __future__ import annotations

import sqlite3

from core.privacy.events import PrivacyEvent
from worker.agent.records import Attempt, AttemptKey, OurAttempt, StoredUpdate

_QUERY = """
SELECT e.run_id, e.round, e.attempt, e.client, e.event, e.spec_digest, o.kind, d.outcome,
       x.run_id IS NOT NULL
FROM entry e
LEFT JOIN entry o ON o.kind <> 'reserve' AND (o.run_id, o.round, o.attempt, o.client)
    = (e.run_id, e.round, e.attempt, e.client)
LEFT JOIN stored s ON (s.run_id, s.round, s.attempt, s.client)
    = (e.run_id, e.round, e.attempt, e.client)
LEFT JOIN delivery d ON d.update_id = s.update_id
LEFT JOIN restored x ON (x.run_id, x.round, x.attempt, x.client)
    = (e.run_id, e.round, e.attempt, e.client)
WHERE e.kind = 'reserve' AND e.population = ?
ORDER BY e.seq
"""


def of_population(db: sqlite3.Connection, population: str) -> list[OurAttempt]:
    """Every attempt that was ever charged to the population, oldest first."""
    return [
        OurAttempt(
            key=AttemptKey(*row[:4]),
            event=PrivacyEvent.model_validate_json(row[4]),
            spec_digest=row[5],
            standing=row[6] or "open",
            delivery=row[7],
            restored=bool(row[8]),
        )
        for row in db.execute(_QUERY, (population,))
    ]


def attempts(db: sqlite3.Connection, where: str, values: tuple[object, ...]) -> list[Attempt]:
    """Attempts with their leases, oldest first."""
    rows = db.execute(
        "SELECT l.run_id, l.round, l.attempt, l.client, l.work_id, l.token,"  # noqa: S608
        " (SELECT e.kind FROM entry e WHERE e.kind <> 'reserve' AND e.run_id = l.run_id"
        "  AND e.round = l.round AND e.attempt = l.attempt AND e.client = l.client)"
        f" FROM lease l {where} ORDER BY l.rowid",
        values,
    )
    states = {None: "reserved", "commit": "committed", "lost": "lost"}
    return [
        Attempt(AttemptKey(*row[:4]), states[row[6]], row[4], row[5])  # type: ignore[arg-type]
        for row in rows
    ]


def updates(db: sqlite3.Connection, where: str, values: tuple[object, ...]) -> list[StoredUpdate]:
    """Committed updates, with their bytes while these are kept, oldest first."""
    rows = db.execute(
        "SELECT update_id, run_id, round, attempt, client, s.digest, s.size,"  # noqa: S608
        " l.work_id, l.token, p.body, d.outcome"
        " FROM stored s JOIN lease l USING (run_id, round, attempt, client)"
        " LEFT JOIN payload p USING (update_id) LEFT JOIN delivery d USING (update_id)"
        f" WHERE {where} ORDER BY s.rowid",
        values,
    )
    return [
        StoredUpdate(row[0], AttemptKey(*row[1:5]), row[5], row[6], row[7], row[8], row[9], row[10])
        for row in rows
    ]
