"""The site's own ledger and store of updates: what was spent here, whatever anyone else says.

Guarantees, on which ``worker.execution`` builds:

* An attempt is reserved (durably) before its data are used and can be reserved once only, so it
  is executed at most once: executed <= charged, also after ``kill -9`` at any point.
* The row ``commit`` and the noised bytes appear in one transaction, before anything is sent.
  There is one byte string per attempt, and a resend is that string.
* What a client keeps of a round appears in that transaction, too, and counts once the update was
  accepted (``worker.agent.state``).
* Rows are append-only (triggers). A reservation without a commit stays charged: it is ``lost``.
* Epsilon is recomputed from the events each time, never stored.
* A ledger restored from a backup takes no reservation before it was completed
  (``worker.agent.restoration``).

SQLite with a write-ahead log and ``synchronous=FULL``: a committed transaction survives a power
cut as far as the disk is honest. Several processes may use one ledger; each opens its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import uuid_utils

from core.privacy import accounting
from core.privacy.events import PrivacyEvent
from core.secagg.messages import Session
from core.secagg.participant import State
from core.wire.messages import WorkOrder
from worker.agent import consents, restoration, schema, standing, state, sum_states
from worker.agent.records import (
    Attempt,
    AttemptKey,
    Decision,
    Entry,
    OurAttempt,
    StoredUpdate,
    charged,
)
from worker.agent.restoration import Charge
from worker.agent.sum_states import Sums
from worker.cache import digest_of_bytes
from worker.config import ClientConfig
from worker.errors import AttemptKnown, DataChanged, SiteStateError

_KEY = "run_id = ? AND round = ? AND attempt = ? AND client = ?"
_BUSY_S = 60.0


class SiteLedger:
    """One connection to the ledger of a site. Use it in the thread that opened it."""

    def __init__(self, path: Path, *, site_id: str | None = None) -> None:
        """Open the ledger; with ``site_id``, create it if it is new (see ``worker.agent.site``)."""
        self.path = path
        self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA secure_delete = ON")  # secrets that are wiped are gone
            self._db.execute("PRAGMA recursive_triggers = ON")  # else REPLACE slips past DELETE
            self._prepare(site_id)
            self.sums = Sums(self._db, self._transaction)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise SiteStateError(
                f"{path} cannot be used as a ledger: {error}.",
                mend="Restore it from a backup; never delete it, it is what was spent.",
            ) from error
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    @property
    def site_id(self) -> str:
        return str(self._db.execute("SELECT id FROM site").fetchone()[0])

    def is_unused(self) -> bool:
        """True if nothing was ever reserved or bound here."""
        (used,) = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM entry) OR EXISTS (SELECT 1 FROM binding)"
        ).fetchone()
        return not used

    # --- reading ---

    def entries(self, population: str | None = None) -> list[Entry]:
        """Rows in order, of one population (all its units) or of the whole site."""
        where, values = ("", ()) if population is None else ("WHERE population = ?", (population,))
        rows = self._db.execute(
            "SELECT seq, kind, population, unit, run_id, round, attempt, client, event,"  # noqa: S608
            " spec_digest, at, EXISTS (SELECT 1 FROM restored r WHERE r.run_id = e.run_id"
            " AND r.round = e.round AND r.attempt = e.attempt AND r.client = e.client)"
            f" FROM entry e {where} ORDER BY seq",
            values,
        )
        return [
            Entry(
                row[0],
                row[1],
                row[2],
                row[3],
                AttemptKey(*row[4:8]),
                PrivacyEvent.model_validate_json(row[8]),
                row[9],
                row[10],
                bool(row[11]),
            )
            for row in rows
        ]

    def epsilon(self, population: str, delta: float) -> float:
        """Upper bound on what the account has spent, lost and open reservations included."""
        return accounting.epsilon(charged(self.entries(population)), delta)

    def attempt(self, key: AttemptKey) -> Attempt | None:
        found = standing.attempts(self._db, f"WHERE {_KEY}", key)
        return found[0] if found else None

    def unfinished(self, client: str) -> list[Attempt]:
        """Reserved attempts without an outcome: dead ones, if the client's lock is held."""
        return [
            a
            for a in standing.attempts(self._db, "WHERE client = ?", (client,))
            if a.state == "reserved"
        ]

    def undelivered(self, client: str) -> list[StoredUpdate]:
        """Committed updates for which no final answer is known, oldest first."""
        return standing.updates(self._db, "client = ? AND d.outcome IS NULL", (client,))

    def update_of(self, key: AttemptKey) -> StoredUpdate | None:
        found = standing.updates(self._db, _KEY, key)
        return found[0] if found else None

    def standings(self, population: str) -> list[OurAttempt]:
        """Every attempt ever charged to the population, and what became of it here."""
        return standing.of_population(self._db, population)

    def unreconciled(self, population: str) -> bool:
        """Whether a backup was restored and this population not completed since."""
        return bool(restoration.pending(self._db, population))

    def require_reconciled(self, population: str) -> None:
        """Raises ``NotReconciled`` if a backup was restored and not yet completed."""
        restoration.require_none(self._db, population)

    def kept(self, key: AttemptKey) -> bytes | None:
        """What the client kept of its last accepted round of this run before this attempt's."""
        return state.latest(self._db, key)

    def word(
        self, run_id: str, client: str, *, consent: Literal["ask", "policy"] = "ask"
    ) -> Decision | None:
        """The last word of a person of this site on a run, for one client; where ``consent`` is
        the policy's, of person or policy, but that a person's no stays.
        """
        return consents.counting(self._db, run_id, client, consent)

    # --- writing ---

    def reserve(
        self, order: WorkOrder, config: ClientConfig, check: Callable[[list[Entry]], None]
    ) -> None:
        """Charge an attempt. ``check`` sees the account inside the same transaction.

        Two clients of one population can therefore not pass the limit together. Raises
        ``AttemptKnown`` and whatever ``check`` raises; nothing is written then.
        """
        key = AttemptKey.of(order)
        with self._transaction():
            restoration.require_none(self._db, config.population)
            if self.attempt(key) is not None:
                raise AttemptKnown(f"attempt {key} is in the ledger already")
            check(self.entries(config.population))
            self._insert_entry(
                "reserve", config.population, config.unit, key, order.event, order.spec_digest
            )
            self._db.execute(
                "INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?)",
                (*key, order.work_id, order.lease_token),
            )

    def decide(self, decision: Decision) -> None:
        """Write down what was said to a plan, unless it is the same as the last time."""
        with self._transaction():
            consents.add(self._db, decision, _now())

    def bind(self, run_id: str, client: str, fingerprint: str) -> None:
        """Tie the client's data set to the run at its first use. Raises ``DataChanged``."""
        with self._transaction():
            row = self._db.execute(
                "SELECT fingerprint FROM binding WHERE run_id = ? AND client = ?", (run_id, client)
            ).fetchone()
            if row is None:
                self._db.execute(
                    "INSERT INTO binding VALUES (?, ?, ?, ?)", (run_id, client, fingerprint, _now())
                )
            elif row[0] != fingerprint:
                raise DataChanged(
                    f"the records of {client!r} are not those with which it joined run {run_id}.",
                    field="client.data",
                    mend="Put the old file back, or wait for a run that starts after the change.",
                )

    def commit(
        self,
        key: AttemptKey,
        body: bytes,
        kept: bytes | None = None,
        masked: tuple[Session, State] | None = None,
    ) -> StoredUpdate:
        """Noise was drawn: book it and keep the bytes, in one transaction, before sending.

        ``masked``: of a secure sum, the client's state once its vector was masked.
        """
        update_id, digest = str(uuid_utils.uuid7()), digest_of_bytes(body)
        with self._transaction():
            self._outcome("commit", key)
            self._db.execute(
                "INSERT INTO stored VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (update_id, *key, digest, len(body), _now()),
            )
            self._db.execute("INSERT INTO payload VALUES (?, ?)", (update_id, body))
            if kept is not None:
                state.store(self._db, key, kept)
            if masked is not None:
                sum_states.keep(self._db, masked[0], key.client, masked[1])
        stored = self.update_of(key)
        if stored is None:
            raise SiteStateError(f"attempt {key} vanished from the ledger while it was committed.")
        return stored

    def lose(self, key: AttemptKey) -> None:
        """A reserved attempt that will never be sent. It stays charged."""
        with self._transaction():
            self._outcome("lost", key)

    def delivered(self, update_id: str, outcome: str) -> None:
        """The coordinator's final answer; the bytes are no longer needed, their digest stays."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO delivery VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (update_id, outcome, _now()),
            )
            self._db.execute("DELETE FROM payload WHERE update_id = ?", (update_id,))
            state.forget_useless(self._db, update_id)

    def copy_to(self, target: sqlite3.Connection) -> None:
        """A consistent copy, also while others write (SQLite's online backup)."""
        self._db.backup(target)

    def mark_restored(self, backup_made_at: str) -> None:
        """This file is a backup that is being put in place: nothing may be spent until it was
        completed."""
        with self._transaction():
            restoration.mark(self._db, backup_made_at, _now())
            sum_states.wipe_all(self._db)
        self.sums.checkpoint()

    def complete(self, population: str, unit: str, charges: Sequence[Charge]) -> int:
        """Charge, as lost, what a restored ledger lacks; how many. Once per restoration."""
        with self._transaction():
            return restoration.complete(self._db, population, unit, charges, _now())

    def probe(self) -> None:
        """Write a page that changes nothing. Raises ``SiteStateError`` if that is not possible."""
        with self._transaction():
            self._db.execute(f"PRAGMA user_version = {schema.VERSION}")

    # --- inside ---

    def _prepare(self, site_id: str | None) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0 and site_id is not None:
            self._create(site_id)
        elif 0 < version < schema.VERSION:
            with self._transaction():
                schema.migrate(self._db)
        elif version != schema.VERSION:
            raise SiteStateError(
                f"{self.path} has schema version {version}, this software knows {schema.VERSION}.",
                mend="Use the software that wrote it, or a newer one.",
            )

    def _create(self, site_id: str) -> None:
        quoted = site_id.replace("'", "''")
        first_row = f"INSERT INTO site VALUES ('{quoted}', '{_now()}');\n"  # noqa: S608
        self._db.executescript(f"BEGIN IMMEDIATE;\n{schema.script()}{first_row}COMMIT;")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise SiteStateError(
                f"{self.path} cannot be written: {error}.",
                mend="Free space on its disk, or see who else has locked it.",
            ) from error

    def _insert_entry(
        self,
        kind: str,
        population: str,
        unit: str,
        key: AttemptKey,
        event: PrivacyEvent,
        digest: str,
    ) -> None:
        self._db.execute(
            "INSERT INTO entry (kind, population, unit, run_id, round, attempt, client, event,"
            " spec_digest, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (kind, population, unit, *key, event.model_dump_json(), digest, _now()),
        )

    def _outcome(self, kind: str, key: AttemptKey) -> None:
        """Copy the reservation with another kind; the schema refuses a second outcome."""
        try:
            done = self._db.execute(
                "INSERT INTO entry (kind, population, unit, run_id, round, attempt, client, event,"  # noqa: S608
                " spec_digest, at) SELECT ?, population, unit, run_id, round, attempt, client,"
                f" event, spec_digest, ? FROM entry WHERE kind = 'reserve' AND {_KEY}",
                (kind, _now(), *key),
            )
        except sqlite3.IntegrityError as error:
            raise AttemptKnown(f"attempt {key} already has its outcome") from error
        if done.rowcount != 1:
            raise SiteStateError(f"attempt {key} was never reserved")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
