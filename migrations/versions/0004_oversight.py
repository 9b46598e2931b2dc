"""Oversight: pauses, departures, consents, the audit trail, refused updates, erasures, replays."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

APPEND_ONLY = ("audit_events", "audit_order", "rejections")
_TIME = sa.DateTime(timezone=True)
_EMPTY = sa.text("''")


def _created_at() -> sa.Column[datetime]:
    return sa.Column(
        "created_at", _TIME, server_default=sa.text("clock_timestamp()"), nullable=False
    )


def upgrade() -> None:
    _pauses()
    _departures()
    _consents()
    _trail()
    _replays()


def _pauses() -> None:
    op.add_column("runs", sa.Column("paused_at", _TIME, nullable=True))
    op.add_column("runs", sa.Column("pause_ends", _TIME, nullable=True))
    op.drop_constraint(op.f("ck_runs_state"), "runs", type_="check")
    op.create_check_constraint(
        op.f("ck_runs_state"),
        "runs",
        "state IN ('draft', 'running', 'paused', 'completed', 'failed', 'cancelled')",
    )
    for name in ("pause_ends", "paused_at"):
        op.create_check_constraint(
            op.f(f"ck_runs_{name}"), "runs", f"(state = 'paused') = ({name} IS NOT NULL)"
        )


def _departures() -> None:
    """Facts that are written once and never taken back, but for a quarantine."""
    op.add_column("clients", sa.Column("revoked_at", _TIME, nullable=True))
    op.add_column(
        "clients", sa.Column("revoked_why", sa.Text(), server_default=_EMPTY, nullable=False)
    )
    op.execute("DROP TRIGGER clients_immutable ON clients")
    op.execute(
        "CREATE TRIGGER clients_immutable BEFORE UPDATE ON clients FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('id', 'name', 'space_id', 'account_id', 'managed', "
        "'created_at', '?revoked_at')"
    )
    for name in ("left", "quarantine"):
        at = "left_at" if name == "left" else "quarantined_at"
        op.add_column("run_clients", sa.Column(at, _TIME, nullable=True))
        why = sa.Column(f"{name}_why", sa.Text(), server_default=_EMPTY, nullable=False)
        op.add_column("run_clients", why)
    op.execute("DROP TRIGGER run_clients_immutable ON run_clients")
    op.execute(
        "CREATE TRIGGER run_clients_immutable BEFORE UPDATE ON run_clients FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('run_id', 'client_id', 'position', 'founding', '?left_at')"
    )


def _consents() -> None:
    op.create_table(
        "consents",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("spec_digest", sa.String(length=71), nullable=False),
        sa.Column("epsilon", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("decided_by", sa.String(length=16), nullable=True),
        sa.Column("decided_at", _TIME, nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        _created_at(),
        sa.Column("queued_at", _TIME, nullable=True),
        sa.Column("queued_count", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "state IN ('asked', 'approved', 'refused')", name=op.f("ck_consents_state")
        ),
        sa.CheckConstraint(
            "(state = 'asked') = (decided_at IS NULL)", name=op.f("ck_consents_decided")
        ),
        sa.CheckConstraint(
            "(state = 'asked') = (decided_by IS NULL)", name=op.f("ck_consents_decided_by_whom")
        ),
        sa.CheckConstraint(
            "decided_by IN ('person', 'policy')", name=op.f("ck_consents_decided_by")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "client_id"],
            ["run_clients.run_id", "run_clients.client_id"],
            name="fk_consents_run_id_client_id",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_consents"),
    )
    op.create_index(
        "uq_consents_run_id_client_id", "consents", ["run_id", "client_id"], unique=True
    )
    op.create_index(
        "ix_consents_asked",
        "consents",
        ["client_id"],
        unique=False,
        postgresql_where=sa.text("state = 'asked'"),
    )
    # What was asked stays, and a decision is final: who changes its mind leaves the run.
    op.execute(
        "CREATE TRIGGER consents_immutable BEFORE UPDATE ON consents FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('id', 'run_id', 'client_id', 'spec_digest', 'epsilon', "
        "'created_at', '?decided_at', '?decided_by')"
    )
    op.execute(
        """
        CREATE FUNCTION fhv_decided_once() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF OLD.state <> 'asked' AND NEW.state IS DISTINCT FROM OLD.state THEN
                RAISE EXCEPTION 'consents: a decision is final'
                    USING ERRCODE = 'restrict_violation';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER consents_decided_once BEFORE UPDATE ON consents "
        "FOR EACH ROW EXECUTE FUNCTION fhv_decided_once()"
    )
    op.execute(
        "CREATE TRIGGER consents_kept BEFORE DELETE ON consents "
        "FOR EACH ROW EXECUTE FUNCTION fhv_refuse()"
    )
    # Sites that took part before they were asked have judged every order by their own policy.
    op.execute(
        """
        INSERT INTO consents (id, run_id, client_id, spec_digest, epsilon, state, decided_by,
                              decided_at, why, queued_count)
        SELECT gen_random_uuid(), rc.run_id, rc.client_id, r.spec_digest, r.epsilon_planned,
               'approved', 'policy', clock_timestamp(), 'enrolled before consents were asked', 0
        FROM run_clients rc JOIN runs r ON r.id = rc.run_id
        """
    )
    op.create_table(
        "join_requests",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        _created_at(),
        sa.Column("settled_at", _TIME, nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name="fk_join_requests_client_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_join_requests_run_id"),
        sa.PrimaryKeyConstraint("run_id", "client_id", name="pk_join_requests"),
    )
    op.create_index("ix_join_requests_client_id", "join_requests", ["client_id"], unique=False)


def _trail() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", _TIME, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("kind", sa.String(length=48), nullable=False),
        sa.Column("actor_scope", sa.String(length=16), nullable=False),
        sa.Column("actor_token", sa.Uuid(), nullable=True),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.Column("round_number", sa.Integer(), nullable=True),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_events"),
    )
    for column in ("run_id", "client_id", "kind"):
        name = f"ix_audit_events_{column}_id"
        op.create_index(name, "audit_events", [column, "id"], unique=False)
    _order_of_the_trail()
    op.create_table(
        "rejections",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("work_id", sa.Uuid(), nullable=True),
        sa.Column("update_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.String(length=48), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        _created_at(),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.number"],
            name="fk_rejections_run_id_round_number",
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "client_id"],
            ["run_clients.run_id", "run_clients.client_id"],
            name="fk_rejections_run_id_client_id",
        ),
        sa.ForeignKeyConstraint(["work_id"], ["work_items.id"], name="fk_rejections_work_id"),
        sa.PrimaryKeyConstraint("id", name="pk_rejections"),
    )
    for column in ("run_id", "client_id"):
        op.create_index(f"ix_rejections_{column}_id", "rejections", [column, "id"], unique=False)
    op.create_table(
        "erasures",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        _created_at(),
        sa.Column("done_at", _TIME, nullable=True),
        sa.CheckConstraint("reason IN ('retention', 'requested')", name=op.f("ck_erasures_reason")),
        sa.ForeignKeyConstraint(["digest"], ["objects.digest"], name="fk_erasures_digest"),
        sa.PrimaryKeyConstraint("digest", name="pk_erasures"),
    )
    op.create_index(
        "ix_erasures_pending",
        "erasures",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("done_at IS NULL"),
    )
    op.create_index("ix_updates_digest", "updates", ["digest"], unique=False)
    _rules_of_erasure()
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION fhv_refuse()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION fhv_refuse()"
        )


def _order_of_the_trail() -> None:
    """Events wait in ``audit_inbox`` until a reader has given them places (api.events.order)."""
    op.create_table(
        "audit_inbox",
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_audit_inbox"),
    )
    op.create_table(
        "audit_order",
        sa.Column("position", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("position", name="pk_audit_order"),
        sa.UniqueConstraint("event_id", name="uq_audit_order_event_id"),
    )
    op.create_index(
        "ix_audit_order_run_id_position", "audit_order", ["run_id", "position"], unique=False
    )
    # NOTIFY makes commits wait for one another: not for what every update of every client does.
    op.execute(
        """
        CREATE FUNCTION fhv_new_event() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO audit_inbox (event_id, run_id) VALUES (NEW.id, NEW.run_id);
            IF NEW.run_id IS NOT NULL AND NEW.kind NOT IN ('work-leased', 'update-accepted') THEN
                PERFORM pg_notify('fedhypevae', 'run:' || NEW.run_id);
            END IF;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER audit_events_new AFTER INSERT ON audit_events "
        "FOR EACH ROW EXECUTE FUNCTION fhv_new_event()"
    )


def _rules_of_erasure() -> None:
    """An erasure is never taken back, and erased bytes never count again: whoever deletes locks
    the object's row first, whoever names it waits for that lock and then looks.
    """
    op.execute(
        "CREATE TRIGGER erasures_immutable BEFORE UPDATE ON erasures FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('digest', 'reason', 'created_at', '?done_at')"
    )
    op.execute(
        "CREATE TRIGGER erasures_kept BEFORE DELETE ON erasures "
        "FOR EACH ROW EXECUTE FUNCTION fhv_refuse()"
    )
    op.execute(
        "CREATE TRIGGER erasures_no_truncate BEFORE TRUNCATE ON erasures "
        "FOR EACH STATEMENT EXECUTE FUNCTION fhv_refuse()"
    )
    op.execute(
        """
        CREATE FUNCTION fhv_not_erased() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM FROM objects WHERE digest = NEW.digest FOR KEY SHARE;
            IF EXISTS (SELECT FROM erasures WHERE digest = NEW.digest) THEN
                RAISE EXCEPTION 'the bytes % were erased and cannot count again', NEW.digest
                    USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER updates_not_erased BEFORE INSERT ON updates "
        "FOR EACH ROW EXECUTE FUNCTION fhv_not_erased()"
    )


def _replays() -> None:
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", "kind IN ('aggregate', 'replay')")
    op.drop_constraint("uq_jobs_run_id_round_number_kind", "jobs", type_="unique")
    op.create_index(
        "uq_jobs_one_aggregation",
        "jobs",
        ["run_id", "round_number"],
        unique=True,
        postgresql_where=sa.text("kind = 'aggregate'"),
    )
    op.create_index("ix_jobs_run_id_round_number", "jobs", ["run_id", "round_number"], unique=False)


def downgrade() -> None:
    # Software before this revision knows neither these states nor these jobs.
    op.execute(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT FROM runs WHERE state IN ('paused', 'cancelled'))
                OR EXISTS (SELECT FROM jobs WHERE kind = 'replay')
                OR EXISTS (SELECT FROM audit_events)
                OR EXISTS (SELECT FROM consents WHERE state <> 'approved')
                OR EXISTS (SELECT FROM clients WHERE revoked_at IS NOT NULL)
                OR EXISTS (SELECT FROM run_clients
                           WHERE left_at IS NOT NULL OR quarantined_at IS NOT NULL) THEN
                RAISE EXCEPTION 'there is an audit trail: this database cannot go back before it';
            END IF;
        END $$
        """
    )
    op.drop_index("ix_jobs_run_id_round_number", "jobs")
    op.drop_index("uq_jobs_one_aggregation", "jobs")
    op.create_unique_constraint(
        "uq_jobs_run_id_round_number_kind", "jobs", ["run_id", "round_number", "kind"]
    )
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs", type_="check")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", "kind = 'aggregate'")
    op.execute("DROP TRIGGER updates_not_erased ON updates")
    op.drop_index("ix_updates_digest", "updates")
    for table in ("erasures", "rejections", "audit_order", "audit_inbox", "audit_events"):
        op.drop_table(table)
    op.drop_table("join_requests")
    op.drop_table("consents")
    for function in ("fhv_new_event", "fhv_not_erased", "fhv_decided_once"):
        op.execute(f"DROP FUNCTION {function}()")
    op.execute("DROP TRIGGER run_clients_immutable ON run_clients")
    op.execute(
        "CREATE TRIGGER run_clients_immutable BEFORE UPDATE ON run_clients FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('run_id', 'client_id', 'position', 'founding')"
    )
    for column in ("left_at", "left_why", "quarantined_at", "quarantine_why"):
        op.drop_column("run_clients", column)
    op.execute("DROP TRIGGER clients_immutable ON clients")
    op.execute(
        "CREATE TRIGGER clients_immutable BEFORE UPDATE ON clients FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('id', 'name', 'space_id', 'account_id', 'managed', "
        "'created_at')"
    )
    op.drop_column("clients", "revoked_why")
    op.drop_column("clients", "revoked_at")
    for name in ("paused_at", "pause_ends"):
        op.drop_constraint(op.f(f"ck_runs_{name}"), "runs", type_="check")
    op.drop_constraint(op.f("ck_runs_state"), "runs", type_="check")
    op.create_check_constraint(
        op.f("ck_runs_state"), "runs", "state IN ('draft', 'running', 'completed', 'failed')"
    )
    op.drop_column("runs", "pause_ends")
    op.drop_column("runs", "paused_at")
