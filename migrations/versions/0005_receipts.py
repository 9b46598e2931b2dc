"""Receipts, signing keys, quotas; domains of clients; erasure of revoked clients' updates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.add_column("clients", sa.Column("domain", sa.String(63), nullable=True))
    _clients("'id', 'name', 'space_id', 'account_id', 'managed', 'domain', 'created_at'")
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("public", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("retired_at", _TIME, nullable=True),
        sa.Column("revoked_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_keys")),
    )
    op.create_index(
        "uq_signing_keys_active",
        "signing_keys",
        [sa.literal_column("(true)")],
        unique=True,
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.create_table(
        "receipts",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("body", postgresql.JSONB(), nullable=False),
        sa.Column("content", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.number"],
            name=op.f("fk_receipts_run_id_round_number"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_receipts")),
    )
    op.create_index(
        op.f("ix_receipts_run_id_created_at"), "receipts", ["run_id", "created_at"], unique=False
    )
    op.create_table(
        "synthesis_usage",
        sa.Column("token_id", sa.Uuid(), nullable=False),
        sa.Column("minute", _TIME, nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["token_id"], ["tokens.id"], name=op.f("fk_synthesis_usage_token_id")
        ),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_synthesis_usage")),
    )
    _reasons("'retention', 'requested', 'revoked'")
    _keep("signing_keys", "'id', 'public', 'sealed', 'created_at', '?retired_at', '?revoked_at'")
    _keep("receipts", "'id', 'run_id', 'round_number', 'body', 'created_at', '?content'")


def _keep(table: str, columns: str) -> None:
    """What was written stays; a column with a question mark is filled once."""
    op.execute(
        f"CREATE TRIGGER {table}_immutable BEFORE UPDATE ON {table} FOR EACH ROW "
        f"EXECUTE FUNCTION fhv_keep({columns})"
    )
    op.execute(
        f"CREATE TRIGGER {table}_kept BEFORE DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION fhv_refuse()"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION fhv_refuse()"
    )


def _clients(kept: str) -> None:
    op.execute("DROP TRIGGER clients_immutable ON clients")
    op.execute(
        "CREATE TRIGGER clients_immutable BEFORE UPDATE ON clients FOR EACH ROW "
        f"EXECUTE FUNCTION fhv_keep({kept}, '?revoked_at')"
    )


def _reasons(listed: str) -> None:
    op.drop_constraint(op.f("ck_erasures_reason"), "erasures", type_="check")
    op.create_check_constraint(op.f("ck_erasures_reason"), "erasures", f"reason IN ({listed})")


def downgrade() -> None:
    # A receipt must be verifiable as long as anybody has one.
    op.execute(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT FROM receipts) THEN
                RAISE EXCEPTION 'there are receipts: this database cannot go back before them';
            END IF;
        END $$
        """
    )
    op.execute("ALTER TABLE erasures DISABLE TRIGGER erasures_immutable")
    op.execute("UPDATE erasures SET reason = 'requested' WHERE reason = 'revoked'")
    op.execute("ALTER TABLE erasures ENABLE TRIGGER erasures_immutable")
    _reasons("'retention', 'requested'")
    _clients("'id', 'name', 'space_id', 'account_id', 'managed', 'created_at'")
    op.drop_column("clients", "domain")
    op.drop_table("synthesis_usage")
    op.drop_table("receipts")
    op.drop_table("signing_keys")
