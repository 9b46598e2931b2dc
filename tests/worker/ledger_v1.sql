-- The site ledger's schema of version 1, as it stands in files that sites have. Never to be changed.

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

CREATE TRIGGER site_no_update BEFORE UPDATE ON site BEGIN SELECT RAISE(ABORT, 'site is append-only'); END;
CREATE TRIGGER binding_no_update BEFORE UPDATE ON binding BEGIN SELECT RAISE(ABORT, 'binding is append-only'); END;
CREATE TRIGGER entry_no_update BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'entry is append-only'); END;
CREATE TRIGGER lease_no_update BEFORE UPDATE ON lease BEGIN SELECT RAISE(ABORT, 'lease is append-only'); END;
CREATE TRIGGER stored_no_update BEFORE UPDATE ON stored BEGIN SELECT RAISE(ABORT, 'stored is append-only'); END;
CREATE TRIGGER delivery_no_update BEFORE UPDATE ON delivery BEGIN SELECT RAISE(ABORT, 'delivery is append-only'); END;
CREATE TRIGGER payload_no_update BEFORE UPDATE ON payload BEGIN SELECT RAISE(ABORT, 'payload is append-only'); END;
CREATE TRIGGER site_no_delete BEFORE DELETE ON site BEGIN SELECT RAISE(ABORT, 'site is append-only'); END;
CREATE TRIGGER binding_no_delete BEFORE DELETE ON binding BEGIN SELECT RAISE(ABORT, 'binding is append-only'); END;
CREATE TRIGGER entry_no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'entry is append-only'); END;
CREATE TRIGGER lease_no_delete BEFORE DELETE ON lease BEGIN SELECT RAISE(ABORT, 'lease is append-only'); END;
CREATE TRIGGER stored_no_delete BEFORE DELETE ON stored BEGIN SELECT RAISE(ABORT, 'stored is append-only'); END;
CREATE TRIGGER delivery_no_delete BEFORE DELETE ON delivery BEGIN SELECT RAISE(ABORT, 'delivery is append-only'); END;
PRAGMA user_version = 1;
