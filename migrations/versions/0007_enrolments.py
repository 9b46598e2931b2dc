"""Enrolment by one-time codes; tokens that are renewed and replaced."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    op.add_column("tokens", sa.Column("renewal_s", sa.Double(), nullable=True))
    op.add_column("tokens", sa.Column("replaced_by", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_tokens_replaced_by"), "tokens", "tokens", ["replaced_by"], ["id"]
    )
    op.create_unique_constraint(op.f("uq_tokens_replaced_by"), "tokens", ["replaced_by"])
    _tokens("'id', 'scope', 'client_id', 'mac', 'created_at', 'renewal_s', '?replaced_by'")
    op.create_table(
        "enrolments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("code_mac", sa.LargeBinary(32), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("wanted", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column("automatic", sa.Boolean(), nullable=False),
        sa.Column("token_s", sa.Double(), nullable=False),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("redeemed_at", _TIME, nullable=True),
        sa.Column("token_mac", sa.LargeBinary(32), nullable=True),
        sa.Column("fingerprint", sa.String(9), nullable=True),
        sa.Column("agent", sa.String(200), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("decided_at", _TIME, nullable=True),
        sa.Column("decision", sa.String(16), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "decision IN ('approved', 'refused', 'withdrawn', 'expired')",
            name=op.f("ck_enrolments_decision"),
        ),
        sa.CheckConstraint(
            "(decision IS NULL) = (decided_at IS NULL)", name=op.f("ck_enrolments_decided")
        ),
        sa.CheckConstraint(
            "(redeemed_at IS NULL) = (token_mac IS NULL) "
            "AND (redeemed_at IS NULL) = (fingerprint IS NULL)",
            name=op.f("ck_enrolments_redeemed"),
        ),
        sa.CheckConstraint(
            "decision <> 'approved' OR (client_id IS NOT NULL AND token_mac IS NOT NULL)",
            name=op.f("ck_enrolments_approved"),
        ),
        sa.CheckConstraint(
            "wanted IS NOT NULL OR client_id IS NOT NULL", name=op.f("ck_enrolments_somebody")
        ),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_enrolments_client_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrolments")),
        sa.UniqueConstraint("code_mac", name=op.f("uq_enrolments_code_mac")),
        sa.UniqueConstraint("token_mac", name=op.f("uq_enrolments_token_mac")),
    )
    op.create_index(op.f("ix_enrolments_client_id"), "enrolments", ["client_id"], unique=False)
    op.create_index(
        "uq_enrolments_open",
        "enrolments",
        ["name"],
        unique=True,
        postgresql_where=sa.text("decision IS NULL"),
    )
    op.execute(
        "CREATE TRIGGER enrolments_immutable BEFORE UPDATE ON enrolments FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('id', 'code_mac', 'name', 'wanted', 'automatic', 'token_s', "
        "'created_at', 'expires_at', '?client_id', '?redeemed_at', '?token_mac', '?fingerprint', "
        "'?decided_at', '?decision')"
    )


def downgrade() -> None:
    op.drop_table("enrolments")
    _tokens("'id', 'scope', 'client_id', 'mac', 'created_at'")
    op.drop_constraint(op.f("uq_tokens_replaced_by"), "tokens")
    op.drop_constraint(op.f("fk_tokens_replaced_by"), "tokens")
    op.drop_column("tokens", "replaced_by")
    op.drop_column("tokens", "renewal_s")


def _tokens(columns: str) -> None:
    """Which columns of a token never change."""
    op.execute("DROP TRIGGER tokens_immutable ON tokens")
    op.execute(
        "CREATE TRIGGER tokens_immutable BEFORE UPDATE ON tokens FOR EACH ROW "
        f"EXECUTE FUNCTION fhv_keep({columns})"
    )
