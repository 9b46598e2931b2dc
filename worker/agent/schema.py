"""Tables of the site's own ledger: triggers forbid to alter a row or to take it back."""

from __future__ import annotations

import sqlite3

VERSION = 5

# Tables whose rows stay as they are. ``payload`` may lose a row, but only once it was delivered,
# ``kept`` once it is of no more use.
RESTORATION_TABLES = ("restoration", "reconciliation", "restored")
APPEND_ONLY = ("site", "binding", "entry", "lease", "stored", "delivery", *RESTORATION_TABLES)
UNCHANGEABLE = (*APPEND_ONLY, "payload", "kept")

TABLES = """
CREATE TABLE site (
    id          TEXT PRIMARY KEY,
    created_at  TEXT NOT NULL
) STRICT;

-- Which data set a client joined a run with: an HMAC under a key that never leaves the site.
CREATE TABLE binding (
    run_id      TEXT NOT NULL,
    client      TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    at          TEXT NOT NULL,
    PRIMARY KEY (run_id, client)
) STRICT;

-- One reserve and at most one outcome per attempt. Charged to the account (population, unit).
CREATE TABLE entry (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    kind        TEXT NOT NULL CHECK (kind IN ('reserve', 'commit', 'lost')),
    population  TEXT NOT NULL,
    unit        TEXT NOT NULL,
    run_id      TEXT NOT NULL,
    round       INTEGER NOT NULL CHECK (round >= 0),
    attempt     INTEGER NOT NULL CHECK (attempt >= 1),
    client      TEXT NOT NULL,
    event       TEXT NOT NULL,
    spec_digest TEXT NOT NULL,
    at          TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_reserve ON entry (run_id, round, attempt, client) WHERE kind = 'reserve';
CREATE UNIQUE INDEX one_outcome ON entry (run_id, round, attempt, client) WHERE kind <> 'reserve';
CREATE INDEX entry_population ON entry (population);

CREATE TRIGGER outcome_needs_reserve BEFORE INSERT ON entry
WHEN NEW.kind <> 'reserve' AND NOT EXISTS (
    SELECT 1 FROM entry e
    WHERE e.kind = 'reserve' AND e.run_id = NEW.run_id AND e.round = NEW.round
      AND e.attempt = NEW.attempt AND e.client = NEW.client AND e.population = NEW.population
      AND e.unit = NEW.unit AND e.event = NEW.event AND e.spec_digest = NEW.spec_digest
)
BEGIN SELECT RAISE(ABORT, 'an outcome needs its own reservation'); END;

-- Under which lease an attempt was reserved, to give it back or deliver it after a crash.
CREATE TABLE lease (
    run_id      TEXT NOT NULL,
    round       INTEGER NOT NULL,
    attempt     INTEGER NOT NULL,
    client      TEXT NOT NULL,
    work_id     TEXT NOT NULL,
    token       TEXT NOT NULL,
    PRIMARY KEY (run_id, round, attempt, client)
) STRICT;

-- What was committed. The bytes stand in payload until the coordinator has answered for good.
CREATE TABLE stored (
    update_id   TEXT PRIMARY KEY,
    run_id      TEXT NOT NULL,
    round       INTEGER NOT NULL,
    attempt     INTEGER NOT NULL,
    client      TEXT NOT NULL,
    digest      TEXT NOT NULL,
    size        INTEGER NOT NULL,
    at          TEXT NOT NULL,
    UNIQUE (run_id, round, attempt, client)
) STRICT;
CREATE TABLE payload (
    update_id   TEXT PRIMARY KEY REFERENCES stored (update_id),
    body        BLOB NOT NULL
) STRICT;
CREATE TABLE delivery (
    update_id   TEXT PRIMARY KEY REFERENCES stored (update_id),
    outcome     TEXT NOT NULL,
    at          TEXT NOT NULL
) STRICT;

CREATE TRIGGER stored_needs_commit BEFORE INSERT ON stored
WHEN NOT EXISTS (
    SELECT 1 FROM entry e
    WHERE e.kind = 'commit' AND e.run_id = NEW.run_id AND e.round = NEW.round
      AND e.attempt = NEW.attempt AND e.client = NEW.client
)
BEGIN SELECT RAISE(ABORT, 'stored bytes need their commit'); END;
CREATE TRIGGER payload_until_delivered BEFORE DELETE ON payload
WHEN NOT EXISTS (SELECT 1 FROM delivery d WHERE d.update_id = OLD.update_id)
BEGIN SELECT RAISE(ABORT, 'undelivered bytes stay'); END;
"""


# What a client keeps of a training round (noised): of use from when its update was accepted until a
# later round's was. Which rows count is not stored but follows from delivery.
_ACCEPTED = """EXISTS (
    SELECT 1 FROM stored s JOIN delivery d USING (update_id)
    WHERE s.run_id = {row}.run_id AND s.round = {row}.round AND s.attempt = {row}.attempt
      AND s.client = {row}.client AND d.outcome {outcome} 'accepted'
)"""
_LATER = f"""EXISTS (
    SELECT 1 FROM kept k
    WHERE k.run_id = OLD.run_id AND k.client = OLD.client AND k.round > OLD.round
      AND {_ACCEPTED.format(row="k", outcome="=")}
)"""  # noqa: S608 (constants only)
KEPT = (
    """CREATE TABLE kept (
    run_id      TEXT NOT NULL,
    round       INTEGER NOT NULL,
    attempt     INTEGER NOT NULL,
    client      TEXT NOT NULL,
    digest      TEXT NOT NULL,
    body        BLOB NOT NULL,
    PRIMARY KEY (run_id, round, attempt, client),
    FOREIGN KEY (run_id, round, attempt, client)
        REFERENCES stored (run_id, round, attempt, client)
) STRICT""",
    f"""CREATE TRIGGER kept_while_of_use BEFORE DELETE ON kept
WHEN NOT {_ACCEPTED.format(row="OLD", outcome="<>")} AND NOT {_LATER}
BEGIN SELECT RAISE(ABORT, 'what is kept stays while it is of use'); END""",
)


# A backup was put in place of the ledger: what was spent since it was made stands elsewhere.
RESTORED = (
    """CREATE TABLE restoration (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    backup_made_at TEXT NOT NULL,
    at             TEXT NOT NULL
) STRICT""",
    # The population was completed from the coordinator's ledger.
    """CREATE TABLE reconciliation (
    restoration INTEGER NOT NULL REFERENCES restoration (seq),
    population  TEXT NOT NULL,
    booked      INTEGER NOT NULL CHECK (booked >= 0),
    at          TEXT NOT NULL,
    PRIMARY KEY (restoration, population)
) STRICT""",
    # Attempts that were charged from there.
    """CREATE TABLE restored (
    run_id      TEXT NOT NULL,
    round       INTEGER NOT NULL,
    attempt     INTEGER NOT NULL,
    client      TEXT NOT NULL,
    restoration INTEGER NOT NULL REFERENCES restoration (seq),
    PRIMARY KEY (run_id, round, attempt, client)
) STRICT""",
    """CREATE TRIGGER nothing_is_spent_before_reconciliation BEFORE INSERT ON entry
WHEN NEW.kind <> 'lost' AND EXISTS (
    SELECT 1 FROM restoration r WHERE NOT EXISTS (
        SELECT 1 FROM reconciliation c
        WHERE c.restoration = r.seq AND c.population = NEW.population
    )
) AND NOT EXISTS (
    SELECT 1 FROM restored x
    WHERE x.run_id = NEW.run_id AND x.round = NEW.round AND x.attempt = NEW.attempt
      AND x.client = NEW.client
)
BEGIN SELECT RAISE(ABORT, 'a restored ledger was not completed yet'); END""",
)


def _append_only(table: str, verb: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
    )


# What this site has said to a run's plan. The last word of a person counts.
CONSENT = (
    """CREATE TABLE consent (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id      TEXT NOT NULL,
    client      TEXT NOT NULL,
    spec_digest TEXT NOT NULL,
    joins       INTEGER NOT NULL CHECK (joins IN (0, 1)),
    decision    TEXT NOT NULL CHECK (decision IN ('approve', 'refuse')),
    decided_by  TEXT NOT NULL CHECK (decided_by IN ('person', 'policy')),
    why         TEXT NOT NULL,
    at          TEXT NOT NULL
) STRICT""",
    _append_only("consent", "UPDATE"),
    _append_only("consent", "DELETE"),
)

# A client's secrets in the secure sum of one round: one session, ever. ``state`` is gone once the
# sum was opened, or the ledger was restored from a backup (which may have forgotten a mask).
SUMS = (
    """CREATE TABLE sum_state (
    run_id      TEXT NOT NULL,
    round       INTEGER NOT NULL,
    client      TEXT NOT NULL,
    session     TEXT NOT NULL,
    state       TEXT,
    masked      INTEGER NOT NULL CHECK (masked IN (0, 1)),
    at          TEXT NOT NULL,
    PRIMARY KEY (run_id, round, client)
) STRICT""",
    """CREATE TRIGGER one_session_of_a_sum BEFORE UPDATE ON sum_state
WHEN NEW.run_id <> OLD.run_id OR NEW.round <> OLD.round OR NEW.client <> OLD.client
  OR NEW.session <> OLD.session OR NEW.masked < OLD.masked
  OR (OLD.state IS NULL AND NEW.state IS NOT NULL)
BEGIN SELECT RAISE(ABORT, 'a round has one session, and a vector is masked once'); END""",
    _append_only("sum_state", "DELETE"),
)

# Version -> the statements that lead to the next one.
MIGRATIONS = {
    1: (*KEPT, _append_only("kept", "UPDATE")),
    2: (
        *RESTORED,
        *(
            _append_only(table, verb)
            for table in RESTORATION_TABLES
            for verb in ("UPDATE", "DELETE")
        ),
    ),
    3: CONSENT,
    4: SUMS,
}


def script() -> str:
    """The whole schema, as SQL statements."""
    triggers = [
        _append_only(table, verb)
        for verb, tables in (("UPDATE", UNCHANGEABLE), ("DELETE", APPEND_ONLY))
        for table in tables
    ]
    rest = "".join(
        f"{statement};\n" for statement in (*KEPT, *RESTORED, *triggers, *CONSENT, *SUMS)
    )
    return f"{TABLES}\n{rest}PRAGMA user_version = {VERSION};\n"


def migrate(db: sqlite3.Connection) -> None:
    """Add what later versions have more; rows stay as they are. In the caller's transaction."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    for number in range(version, VERSION):
        for statement in MIGRATIONS[number]:
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")
