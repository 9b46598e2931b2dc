"""Rules of rows that no CHECK can hold: append-only tables, immutable columns, ledger outcomes.

Triggers, so that a bug or a person at a prompt is refused as well. (A superuser can still switch
triggers off; the coordinator's own role needs no such right.)
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Rows of these tables are never changed once written.
APPEND_ONLY = ("ledger_entries", "updates", "spaces", "accounts", "objects")

# Columns that keep the value of the INSERT.
IMMUTABLE = {
    "clients": ("id", "name", "space_id", "account_id", "managed", "created_at"),
    "tokens": ("id", "scope", "client_id", "mac", "created_at"),
    "runs": ("id", "name", "spec", "spec_digest", "epsilon_planned", "created_at"),
    "run_clients": ("run_id", "client_id", "position"),
    "rounds": ("run_id", "number", "created_at"),
    "work_items": ("id", "run_id", "round_number", "client_id", "attempt", "reservation_id"),
    "jobs": ("id", "kind", "run_id", "round_number"),
}

# Columns that keep their first value that is not null.
SET_ONCE = {
    "rounds": ("frame_digest", "weights_digest", "optimiser_digest", "published_at"),
    "jobs": ("result",),
}


def upgrade() -> None:
    op.execute(
        """
        CREATE FUNCTION fhv_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% of % is refused: rows are only ever added', TG_OP, TG_TABLE_NAME
                USING ERRCODE = 'restrict_violation';
        END $$
        """
    )
    op.execute(
        """
        CREATE FUNCTION fhv_keep() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            before jsonb := to_jsonb(OLD);
            after jsonb := to_jsonb(NEW);
            name text;
        BEGIN
            FOREACH name IN ARRAY TG_ARGV LOOP
                IF left(name, 1) = '?' THEN
                    name := substr(name, 2);
                    CONTINUE WHEN jsonb_typeof(before -> name) = 'null';
                END IF;
                IF before -> name IS DISTINCT FROM after -> name THEN
                    RAISE EXCEPTION 'column % of % is immutable', name, TG_TABLE_NAME
                        USING ERRCODE = 'restrict_violation';
                END IF;
            END LOOP;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        """
        CREATE FUNCTION fhv_ledger_outcome() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.kind <> 'reserve' AND NOT EXISTS (
                SELECT FROM ledger_entries r
                WHERE r.id = NEW.reserve_id AND r.kind = 'reserve'
                  AND r.account_id = NEW.account_id AND r.client_id = NEW.client_id
                  AND r.run_id = NEW.run_id AND r.round_number = NEW.round_number
                  AND r.attempt = NEW.attempt
            ) THEN
                RAISE EXCEPTION 'ledger: % names no reservation of this attempt', NEW.kind
                    USING ERRCODE = 'restrict_violation';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION fhv_refuse()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION fhv_refuse()"
        )
    for table, columns in IMMUTABLE.items():
        names = [*columns, *(f"?{name}" for name in SET_ONCE.get(table, ()))]
        arguments = ", ".join(f"'{name}'" for name in names)
        op.execute(
            f"CREATE TRIGGER {table}_immutable BEFORE UPDATE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION fhv_keep({arguments})"
        )
    op.execute(
        "CREATE TRIGGER ledger_entries_outcome BEFORE INSERT ON ledger_entries "
        "FOR EACH ROW EXECUTE FUNCTION fhv_ledger_outcome()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER ledger_entries_outcome ON ledger_entries")
    for table in IMMUTABLE:
        op.execute(f"DROP TRIGGER {table}_immutable ON {table}")
    for table in APPEND_ONLY:
        op.execute(f"DROP TRIGGER {table}_no_truncate ON {table}")
        op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
    op.execute("DROP FUNCTION fhv_ledger_outcome()")
    op.execute("DROP FUNCTION fhv_keep()")
    op.execute("DROP FUNCTION fhv_refuse()")
