"""Secure sums: their sessions, the steps that clients answer, and the keys that clients sign with.

Programs of before find nothing changed: they open no secure sum, and rounds of theirs are in states
that they know.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None
expands = True

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("clock_timestamp()")
_BEFORE = "'draft', 'open', 'closing', 'aggregating'"
_STEPS = "'keys', 'shares', 'confirming', 'opening'"
_ENDS = "'published', 'failed', 'abandoned'"
_ROUND = ["run_id", "round_number"]


def _states(live: str, may_lack_a_deadline: str) -> None:
    op.drop_constraint(op.f("ck_rounds_state"), "rounds", type_="check")
    op.create_check_constraint(op.f("ck_rounds_state"), "rounds", f"state IN ({live}, {_ENDS})")
    op.drop_constraint(op.f("ck_rounds_deadline"), "rounds", type_="check")
    op.create_check_constraint(
        op.f("ck_rounds_deadline"),
        "rounds",
        f"state IN ({may_lack_a_deadline}) OR deadline IS NOT NULL",
    )
    op.drop_index("uq_rounds_live", table_name="rounds")
    op.create_index(
        "uq_rounds_live",
        "rounds",
        ["run_id"],
        unique=True,
        postgresql_where=sa.text(f"state IN ({live})"),
    )


# Who has a code in a run's models cannot join it: two codes of one client would move what was
# published of it.
_ONE_CODE = """
    CREATE OR REPLACE FUNCTION fhv_one_code() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (
            SELECT FROM updates u
            JOIN rounds r ON r.run_id = u.run_id AND r.number = u.round_number
            WHERE u.run_id = NEW.run_id AND u.client_id = NEW.client_id
              AND r.state = 'published'
              AND (:of_round_0 OR EXISTS (
                  SELECT FROM join_members m
                  WHERE m.run_id = u.run_id AND m.round_number = u.round_number
                    AND m.client_id = u.client_id))
        ) THEN
            RAISE EXCEPTION 'join_members: the client has a code in this run'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
"""


def _one_code(of_round_0: str) -> None:
    op.execute(_ONE_CODE.replace(":of_round_0", of_round_0))


def upgrade() -> None:
    op.add_column("clients", sa.Column("identity_key", sa.String(64), nullable=True))
    op.create_check_constraint(
        op.f("ck_clients_identity_key"), "clients", "identity_key ~ '^[0-9a-f]{64}$'"
    )
    # A round may fail before it has a deadline: too few sites have approved the plan.
    _states(f"{_BEFORE}, {_STEPS}", "'draft', 'failed', 'abandoned'")
    op.create_table(
        "secure_sums",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("session", postgresql.JSONB(), nullable=False),
        sa.Column("transcript", sa.String(71), nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.ForeignKeyConstraint(
            _ROUND, ["rounds.run_id", "rounds.number"], name="fk_secure_sums_run_id_round_number"
        ),
        sa.ForeignKeyConstraint(
            ["transcript"], ["objects.digest"], name=op.f("fk_secure_sums_transcript")
        ),
        sa.PrimaryKeyConstraint(*_ROUND, name="pk_secure_sums"),
    )
    op.create_table(
        "sum_steps",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.String(8), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("body", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("answered_at", _TIME, nullable=True),
        sa.Column("queued_at", _TIME, nullable=True),
        sa.Column("queued_count", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "step IN ('keys', 'shares', 'confirm', 'open')", name=op.f("ck_sum_steps_step")
        ),
        sa.CheckConstraint(
            "state IN ('asked', 'answered', 'declined')", name=op.f("ck_sum_steps_state")
        ),
        sa.CheckConstraint(
            "(state = 'answered') = (body IS NOT NULL)", name=op.f("ck_sum_steps_body")
        ),
        sa.CheckConstraint(
            "(state = 'asked') = (answered_at IS NULL)", name=op.f("ck_sum_steps_answered")
        ),
        sa.ForeignKeyConstraint(
            _ROUND,
            ["secure_sums.run_id", "secure_sums.round_number"],
            name="fk_sum_steps_run_id_round_number",
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "client_id"],
            ["run_clients.run_id", "run_clients.client_id"],
            name="fk_sum_steps_run_id_client_id",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sum_steps")),
        sa.UniqueConstraint(
            *_ROUND, "client_id", "step", name="uq_sum_steps_run_id_round_number_client_id_step"
        ),
    )
    op.create_index(
        "ix_sum_steps_asked",
        "sum_steps",
        ["client_id"],
        unique=False,
        postgresql_where=sa.text("state = 'asked'"),
    )
    op.execute(
        "CREATE TRIGGER secure_sums_immutable BEFORE UPDATE ON secure_sums FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('run_id', 'round_number', 'session', 'created_at', "
        "'?transcript')"
    )
    op.execute(
        "CREATE TRIGGER sum_steps_immutable BEFORE UPDATE ON sum_steps FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('id', 'run_id', 'round_number', 'client_id', 'step', "
        "'created_at', '?body', '?answered_at')"
    )
    # Another answer than the first could open what the first one was kept for.
    op.execute(
        """
        CREATE FUNCTION fhv_answered_once() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF OLD.state <> 'asked'
               AND (NEW.state, NEW.reason) IS DISTINCT FROM (OLD.state, OLD.reason) THEN
                RAISE EXCEPTION 'sum_steps: an answer is final'
                    USING ERRCODE = 'restrict_violation';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER sum_steps_answered_once BEFORE UPDATE ON sum_steps "
        "FOR EACH ROW EXECUTE FUNCTION fhv_answered_once()"
    )
    for table in ("secure_sums", "sum_steps"):
        op.execute(
            f"CREATE TRIGGER {table}_kept BEFORE DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION fhv_refuse()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION fhv_refuse()"
        )
    # The sketch of a secure run is a sum of all: no founding client has a code of it.
    _one_code(
        "(r.number = 0 AND NOT EXISTS (SELECT FROM runs WHERE runs.id = r.run_id "
        "AND runs.spec #>> '{plan,aggregation}' = 'secure'))"
    )


def downgrade() -> None:
    op.execute(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT FROM secure_sums) THEN
                RAISE EXCEPTION
                    'there are secure sums: this database cannot go back before them';
            END IF;
        END $$
        """
    )
    _one_code("r.number = 0")
    op.drop_table("sum_steps")
    op.drop_table("secure_sums")
    op.execute("DROP FUNCTION fhv_answered_once()")
    _states(_BEFORE, "'draft', 'abandoned'")
    op.drop_constraint(op.f("ck_clients_identity_key"), "clients", type_="check")
    op.drop_column("clients", "identity_key")
