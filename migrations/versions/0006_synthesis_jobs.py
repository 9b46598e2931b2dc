"""Files of rows that workers make, and their parts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.create_table(
        "synthesis_jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("request", postgresql.JSONB(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("rows_done", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("receipt_id", sa.String(36), nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("available_at", _TIME, nullable=False),
        sa.Column("lease_expires", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.Column("expires_at", _TIME, nullable=True),
        sa.Column("queued_at", _TIME, nullable=True),
        sa.Column("queued_count", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "state IN ('ready', 'leased', 'done', 'failed', 'cancelled', 'expired')",
            name=op.f("ck_synthesis_jobs_state"),
        ),
        sa.CheckConstraint(
            "state <> 'leased' OR lease_expires IS NOT NULL", name=op.f("ck_synthesis_jobs_lease")
        ),
        sa.CheckConstraint(
            "state NOT IN ('done', 'expired') OR (size IS NOT NULL AND receipt_id IS NOT NULL "
            "AND expires_at IS NOT NULL)",
            name=op.f("ck_synthesis_jobs_done"),
        ),
        sa.CheckConstraint(
            "rows_done BETWEEN 0 AND rows", name=op.f("ck_synthesis_jobs_rows_done")
        ),
        sa.ForeignKeyConstraint(
            ["token_id"], ["tokens.id"], name=op.f("fk_synthesis_jobs_token_id")
        ),
        sa.ForeignKeyConstraint(
            ["receipt_id"], ["receipts.id"], name=op.f("fk_synthesis_jobs_receipt_id")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.number"],
            name=op.f("fk_synthesis_jobs_run_id_round_number"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_synthesis_jobs")),
    )
    op.create_index(
        op.f("ix_synthesis_jobs_token_id_id"), "synthesis_jobs", ["token_id", "id"], unique=False
    )
    op.create_index(
        "ix_synthesis_jobs_open",
        "synthesis_jobs",
        ["state"],
        unique=False,
        postgresql_where=sa.text("state IN ('ready', 'leased', 'done')"),
    )
    op.create_table(
        "synthesis_parts",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("size > 0", name=op.f("ck_synthesis_parts_size")),
        sa.CheckConstraint("number >= 0", name=op.f("ck_synthesis_parts_number")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["synthesis_jobs.id"], name=op.f("fk_synthesis_parts_job_id")
        ),
        sa.PrimaryKeyConstraint("job_id", "attempt", "number", name=op.f("pk_synthesis_parts")),
    )
    op.create_index(op.f("ix_synthesis_parts_digest"), "synthesis_parts", ["digest"], unique=False)
    op.execute(
        "CREATE TRIGGER synthesis_jobs_immutable BEFORE UPDATE ON synthesis_jobs FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('id', 'token_id', 'run_id', 'round_number', 'request', 'seed', "
        "'format', 'rows', 'created_at', '?size', '?finished_at', '?expires_at')"
    )
    op.execute(
        "CREATE TRIGGER synthesis_parts_immutable BEFORE UPDATE ON synthesis_parts FOR EACH ROW "
        "EXECUTE FUNCTION fhv_refuse()"
    )


def downgrade() -> None:
    op.drop_table("synthesis_parts")
    op.drop_table("synthesis_jobs")
