"""What a client must not forget of a secure sum: secrets, what it said, whether it has masked.

One row for each round and client, of one session, for ever; ``masked`` never goes back. The secrets
are wiped once they are of no more use: when the opening was answered, when a later round of the run
has begun, when the ledger was restored from a backup, or after ``_FORGET``. Wiped is what neither
the ledger's file nor its write-ahead log holds any more; what a file system or a disk still has of
blocks that were given back, nobody here can reach.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from core.errors import PlanRefused
from core.secagg.messages import Session
from core.secagg.participant import State
from worker.agent import sum_runs
from worker.agent.records import AttemptKey
from worker.errors import SiteStateError, SumOver

_KEY = "run_id = ? AND round = ? AND client = ?"
_FORGET = timedelta(days=31)
_DAY_S = 86400.0
_READERS_MS = 250  # to wait for who still reads the log


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


def keep(db: sqlite3.Connection, session: Session, client: str, state: State) -> bool:
    """The state as it is before a message goes; True if an earlier round's was wiped. Raises
    ``sqlite3.IntegrityError`` for another session of the round, and for one that is over.
    """
    now = datetime.now(UTC)
    db.execute(
        "INSERT INTO sum_state VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (run_id, round, client) DO UPDATE"
        " SET session = excluded.session, state = excluded.state, masked = excluded.masked",
        (session.run_id, session.round_number, client, session.digest.hex(),
         state.model_dump_json(), int(state.masked), now.isoformat(timespec="milliseconds")),
    )  # fmt: skip
    wiped = db.execute(
        "UPDATE sum_state SET state = NULL WHERE state IS NOT NULL AND client = ? AND run_id = ?"
        " AND round < ?",
        (client, session.run_id, session.round_number),
    )
    return wiped.rowcount > 0


def wipe_all(db: sqlite3.Connection) -> None:
    """After a backup was put in place: it may lack what was masked since."""
    db.execute("UPDATE sum_state SET state = NULL WHERE state IS NOT NULL")


class Sums:
    """The secure sums of a ledger; ``transaction`` is the ledger's."""

    def __init__(
        self, db: sqlite3.Connection, transaction: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._db, self._transaction = db, transaction
        self._next_wipe = 0.0

    def find(self, run_id: str, round_number: int, client: str) -> SumState | None:
        """What this client keeps of a round's secure sum."""
        return found(self._db, run_id, round_number, client)

    def forgotten(self, run_id: str) -> bool:
        """Whether this ledger may lack what the site signed or masked in the run: it was restored
        from a backup, and the run may have been approved before. What was said since changes that
        not: the coordinator can put the same plan again.
        """
        restored = self._restored()
        if restored is None:
            return False
        (said,) = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM consent WHERE run_id = ? AND at <= ?)",
            (run_id, restored),
        ).fetchone()
        return bool(said) or sum_runs.may_be_of_before(run_id, datetime.fromisoformat(restored))

    def require_open(self, run_id: str) -> None:
        """Raises ``PlanRefused`` for a run in whose sums this site takes no part: its id is of a
        time that has not come, or the ledger may have forgotten it.
        """
        sum_runs.require_made(run_id, datetime.now(UTC))
        restored = self._restored()
        if restored is not None and self.forgotten(run_id):
            until = datetime.fromisoformat(restored) + sum_runs.AHEAD
            raise PlanRefused(
                "this site's ledger was restored from a backup, and may have forgotten what was "
                "signed or masked in a run of before",
                field="run_id",
                mend="The administrator makes a new run, later than "
                f"{until:%Y-%m-%d %H:%M} UTC; it is open to this site.",
            )

    def _restored(self) -> str | None:
        """When the last backup was put in place."""
        (at,) = self._db.execute("SELECT max(at) FROM restoration").fetchone()
        return None if at is None else str(at)

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
                wiped = keep(self._db, session, client, state)
        except sqlite3.IntegrityError as error:
            raise SumOver(f"{client!r} does not go on with this session: {error}.") from error
        if wiped:
            self.checkpoint()

    def wipe(self, run_id: str, round_number: int, client: str) -> None:
        """The sum was opened: its secrets are of no more use to anybody honest."""
        with self._transaction():
            self._db.execute(
                f"UPDATE sum_state SET state = NULL WHERE {_KEY}",  # noqa: S608
                (run_id, round_number, client),
            )
        self.checkpoint()

    def wipe_old(self) -> None:
        """Of sums of which nothing was heard for long: their rounds have failed or were stopped."""
        until = (datetime.now(UTC) - _FORGET).isoformat(timespec="milliseconds")
        with self._transaction():
            self._db.execute(
                "UPDATE sum_state SET state = NULL WHERE state IS NOT NULL AND at < ?", (until,)
            )
        self.checkpoint()
        self._next_wipe = time.monotonic() + _DAY_S

    def wipe_daily(self) -> None:
        """``wipe_old`` once a day, for a process that runs for months."""
        if time.monotonic() >= self._next_wipe:
            self.wipe_old()

    def checkpoint(self) -> None:
        """Write the log into the ledger and cut it off: ``secure_delete`` leaves what was wiped in
        its frames. While others read it stays as it is, and the next wipe does it.
        Raises ``SiteStateError`` if the ledger cannot be written.
        """
        (patience,) = self._db.execute("PRAGMA busy_timeout").fetchone()
        self._db.execute(f"PRAGMA busy_timeout = {_READERS_MS}")
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            raise SiteStateError(
                f"the ledger's write-ahead log cannot be emptied: {error}.",
                mend="Free space on its disk, or see who else has locked it.",
            ) from error
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {patience}")
