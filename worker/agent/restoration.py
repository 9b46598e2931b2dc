"""After a backup was put in place of the ledger: nothing is spent until it was completed.

A restored ledger may be older than what was executed. Until the population's account was compared
with the coordinator's (``worker.agent.reconcile``), the schema takes no new reservation of it. What
the coordinator knows beyond the backup is then charged as ``lost``: reserved and never to be
executed again, so that no attempt counts less than once and none is made twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from core.privacy.events import PrivacyEvent
from worker.agent.records import AttemptKey
from worker.errors import NotReconciled

_KEY = "run_id = ? AND round = ? AND attempt = ? AND client = ?"


@dataclass(frozen=True)
class Charge:
    """An attempt that the coordinator has booked and the restored ledger lacks or left open."""

    key: AttemptKey
    event: PrivacyEvent
    spec_digest: str


def mark(db: sqlite3.Connection, backup_made_at: str, now: str) -> None:
    """This file is a backup that was put in place."""
    db.execute("INSERT INTO restoration (backup_made_at, at) VALUES (?, ?)", (backup_made_at, now))


def pending(db: sqlite3.Connection, population: str) -> list[int]:
    """Restorations after which this population was not yet completed."""
    rows = db.execute(
        "SELECT seq FROM restoration WHERE seq NOT IN"
        " (SELECT restoration FROM reconciliation WHERE population = ?) ORDER BY seq",
        (population,),
    )
    return [int(row[0]) for row in rows]


def require_none(db: sqlite3.Connection, population: str) -> None:
    """Raises ``NotReconciled`` where a restored ledger was not completed."""
    if pending(db, population):
        raise NotReconciled(
            f"the ledger was restored from a backup, and population {population!r} was not yet "
            "compared with the coordinator's ledger: what was spent since then is unknown.",
            mend="Run 'fedhypevae agent reconcile' with the client's token (for managed clients: "
            "an auditor's).",
        )


def complete(
    db: sqlite3.Connection, population: str, unit: str, charges: Sequence[Charge], now: str
) -> int:
    """Charge what is missing, as lost, and let the population be spent from again; how many.

    In the caller's transaction. A second call changes nothing.
    """
    open_since = pending(db, population)
    if not open_since:
        return 0
    for charge in charges:
        db.execute("INSERT INTO restored VALUES (?, ?, ?, ?, ?)", (*charge.key, open_since[-1]))
        row = (population, unit, *charge.key, charge.event.model_dump_json(), charge.spec_digest)
        known = db.execute(
            f"SELECT event, spec_digest, unit FROM entry WHERE kind = 'reserve' AND {_KEY}",  # noqa: S608
            charge.key,
        ).fetchone()
        if known is None:
            _insert(db, "reserve", row, now)
            # Without a lease of its own: it is known, and never to be resumed.
            db.execute("INSERT INTO lease VALUES (?, ?, ?, ?, '', '')", charge.key)
        else:
            row = (population, known[2], *charge.key, known[0], known[1])
        _insert(db, "lost", row, now)
    db.executemany(
        "INSERT INTO reconciliation VALUES (?, ?, ?, ?)",
        [(number, population, len(charges), now) for number in open_since],
    )
    return len(charges)


def _insert(db: sqlite3.Connection, kind: str, row: tuple[object, ...], now: str) -> None:
    db.execute(
        "INSERT INTO entry (kind, population, unit, run_id, round, attempt, client, event,"
        " spec_digest, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (kind, *row, now),
    )
