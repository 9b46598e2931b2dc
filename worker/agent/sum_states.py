"""What a client must not forget of a secure sum: secrets, what it said, whether it has masked.

One row for each round and client, of one session, for ever; ``masked`` never goes back. The secrets
are wiped once they are of no more use: when the opening was answered, when a later round of the run
has begun, when the ledger was restored from a backup, or at a start after ``_FORGET``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from core.secagg.messages import Session
from core.secagg.participant import State
from worker.agent.records import AttemptKey
from worker.errors import SumOver

_KEY = "run_id = ? AND round = ? AND client = ?"
_FORGET = timedelta(days=31)


@dataclass(frozen=True)
class SumState:
    """``state`` is None where it was wiped: this session is over here."""

    session: str
    state: State | None
    masked: bool


def found(db: sqlite3.Connection, run_id: str, round_number: int, client: str) -> SumState | None:
    row = db.execute(
        f"SELECT session, state, masked FROM sum_state WHERE {_KEY}",  # noqa: S608
        (run_id, round_number, client),
    ).fetchone()
    if row is None:
        return None
    state = None if row[1] is None else State.model_validate_json(row[1])
    return SumState(row[0], state, bool(row[2]))


def keep(db: sqlite3.Connection, session: Session, client: str, state: State) -> None:
    """The state as it is before a message goes. Raises ``sqlite3.IntegrityError`` for another
    session of the round, and for one that is over.
    """
    now = datetime.now(UTC)
    db.execute(
        "INSERT INTO sum_state VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (run_id, round, client) DO UPDATE"
        " SET session = excluded.session, state = excluded.state, masked = excluded.masked",
        (session.run_id, session.round_number, client, session.digest.hex(),
         state.model_dump_json(), int(state.masked), now.isoformat(timespec="milliseconds")),
    )  # fmt: skip
    db.execute(
        "UPDATE sum_state SET state = NULL WHERE state IS NOT NULL AND client = ? AND run_id = ?"
        " AND round < ?",
        (client, session.run_id, session.round_number),
    )


def wipe_all(db: sqlite3.Connection) -> None:
    """After a backup was put in place: it may lack what was masked since."""
    db.execute("UPDATE sum_state SET state = NULL WHERE state IS NOT NULL")


class Sums:
    """The secure sums of a ledger; ``transaction`` is the ledger's."""

    def __init__(
        self, db: sqlite3.Connection, transaction: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._db, self._transaction = db, transaction

    def find(self, run_id: str, round_number: int, client: str) -> SumState | None:
        """What this client keeps of a round's secure sum."""
        return found(self._db, run_id, round_number, client)

    def forgotten(self, run_id: str, client: str) -> bool:
        """Whether the ledger was restored since this site last approved the run: it may then have
        signed a view or masked a vector of which the backup knows nothing.
        """
        (restored,) = self._db.execute("SELECT max(at) FROM restoration").fetchone()
        if restored is None:
            return False
        (approved,) = self._db.execute(
            "SELECT max(at) FROM consent WHERE run_id = ? AND client = ? AND decision = 'approve'",
            (run_id, client),
        ).fetchone()
        return approved is None or str(approved) <= str(restored)

    def is_masked(self, key: AttemptKey) -> bool:
        """Whether what was stored for this attempt is a masked vector."""
        mine = found(self._db, key.run_id, key.round_number, key.client)
        return mine is not None and mine.masked

    def keep(self, session: Session, client: str, state: State) -> None:
        """Before a message goes. Raises ``SumOver`` if this round has another session here, or its
        session is over.
        """
        try:
            with self._transaction():
                keep(self._db, session, client, state)
        except sqlite3.IntegrityError as error:
            raise SumOver(f"{client!r} does not go on with this session: {error}.") from error

    def wipe(self, run_id: str, round_number: int, client: str) -> None:
        """The sum was opened: its secrets are of no more use to anybody honest."""
        with self._transaction():
            self._db.execute(
                f"UPDATE sum_state SET state = NULL WHERE {_KEY}",  # noqa: S608
                (run_id, round_number, client),
            )

    def wipe_old(self) -> None:
        """Of sums of which nothing was heard for long: their rounds have failed or were stopped."""
        until = (datetime.now(UTC) - _FORGET).isoformat(timespec="milliseconds")
        with self._transaction():
            self._db.execute(
                "UPDATE sum_state SET state = NULL WHERE state IS NOT NULL AND at < ?", (until,)
            )
