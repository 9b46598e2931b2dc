"""What clients keep between training rounds, in the site's ledger: local encoders.

One immutable blob for each committed attempt (run, round, attempt, client), noised like the update
beside it and written in the same transaction. It counts once that update was accepted, which is
read from ``delivery``: nothing has to be promoted, so nothing can be promoted half-way. A lost
attempt has no blob, a refused one a blob that never counts.
"""

from __future__ import annotations

import sqlite3

from worker.agent.records import ACCEPTED, AttemptKey
from worker.cache import digest_of_bytes
from worker.errors import SiteStateError


def store(db: sqlite3.Connection, key: AttemptKey, body: bytes) -> None:
    """Write an attempt's blob; its update is stored already, in the same transaction."""
    db.execute("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?)", (*key, digest_of_bytes(body), body))


def latest(db: sqlite3.Connection, key: AttemptKey) -> bytes | None:
    """The blob of the client's last accepted round of this run before that of ``key``.

    None if it has none. Raises ``SiteStateError`` for bytes that are not those that were written.
    """
    row = db.execute(
        "SELECT k.body, k.digest FROM kept k JOIN stored s USING (run_id, round, attempt, client)"
        " JOIN delivery d USING (update_id)"
        " WHERE run_id = ? AND client = ? AND round < ? AND d.outcome = ?"
        " ORDER BY round DESC LIMIT 1",
        (key.run_id, key.client, key.round_number, ACCEPTED),
    ).fetchone()
    if row is None:
        return None
    body = bytes(row[0])
    if digest_of_bytes(body) != row[1]:
        raise SiteStateError(
            f"what {key.client!r} kept of run {key.run_id} is damaged in the site's ledger.",
            mend="Restore the ledger from a backup.",
        )
    return body


def forget_useless(db: sqlite3.Connection, update_id: str) -> None:
    """After an update's final answer: drop its client's blobs that can never count again.

    Those of refused updates, and those before the last accepted one (the schema allows no others).
    """
    db.execute(
        "DELETE FROM kept WHERE rowid IN ("
        " WITH mine AS ("
        "  SELECT k.rowid AS place, k.round AS number, d.outcome AS outcome"
        "  FROM stored u JOIN kept k USING (run_id, client)"
        "  JOIN stored s ON (s.run_id, s.round, s.attempt, s.client)"
        "   = (k.run_id, k.round, k.attempt, k.client)"
        "  JOIN delivery d ON d.update_id = s.update_id"
        "  WHERE u.update_id = ?)"
        " SELECT place FROM mine WHERE outcome <> ?"
        " OR number < (SELECT max(number) FROM mine WHERE outcome = ?))",
        (update_id, ACCEPTED, ACCEPTED),
    )
