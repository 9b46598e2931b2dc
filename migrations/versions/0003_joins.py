"""Joins: clients that come to a completed run, each join a round of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Who was there when the run was made; who came later is a member of join rounds only.
    op.add_column(
        "run_clients",
        sa.Column("founding", sa.Boolean(), server_default=sa.text("true"), nullable=False),
    )
    op.create_table(
        "join_members",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("round_number > 0", name=op.f("ck_join_members_round_number")),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.number"],
            name="fk_join_members_run_id_round_number",
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "client_id"],
            ["run_clients.run_id", "run_clients.client_id"],
            name="fk_join_members_run_id_client_id",
        ),
        sa.PrimaryKeyConstraint("run_id", "round_number", "client_id", name="pk_join_members"),
    )
    op.create_index("ix_join_members_client_id", "join_members", ["client_id"], unique=False)
    op.execute("DROP TRIGGER run_clients_immutable ON run_clients")
    op.execute(
        "CREATE TRIGGER run_clients_immutable BEFORE UPDATE ON run_clients FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('run_id', 'client_id', 'position', 'founding')"
    )
    op.execute(
        "CREATE TRIGGER join_members_append_only BEFORE UPDATE OR DELETE ON join_members "
        "FOR EACH ROW EXECUTE FUNCTION fhv_refuse()"
    )
    op.execute(
        "CREATE TRIGGER join_members_no_truncate BEFORE TRUNCATE ON join_members "
        "FOR EACH STATEMENT EXECUTE FUNCTION fhv_refuse()"
    )
    # Two codes of one client would move what was published of it.
    op.execute(
        """
        CREATE FUNCTION fhv_one_code() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (
                SELECT FROM updates u
                JOIN rounds r ON r.run_id = u.run_id AND r.number = u.round_number
                WHERE u.run_id = NEW.run_id AND u.client_id = NEW.client_id
                  AND r.state = 'published'
                  AND (r.number = 0 OR EXISTS (
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
    )
    op.execute(
        "CREATE TRIGGER join_members_one_code BEFORE INSERT ON join_members "
        "FOR EACH ROW EXECUTE FUNCTION fhv_one_code()"
    )


def downgrade() -> None:
    # Software before this revision knows no rounds behind the last one of a plan, and rows of the
    # ledger that name them cannot be removed.
    op.execute(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT FROM join_members) THEN
                RAISE EXCEPTION 'there are joins: this database cannot go back before them';
            END IF;
        END $$
        """
    )
    op.drop_table("join_members")
    op.execute("DROP FUNCTION fhv_one_code()")
    op.execute("DROP TRIGGER run_clients_immutable ON run_clients")
    op.execute(
        "CREATE TRIGGER run_clients_immutable BEFORE UPDATE ON run_clients FOR EACH ROW "
        "EXECUTE FUNCTION fhv_keep('run_id', 'client_id', 'position')"
    )
    op.drop_column("run_clients", "founding")
