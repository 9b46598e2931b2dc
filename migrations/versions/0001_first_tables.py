"""First tables: who takes part, runs and rounds, leased work, updates, the ledger, the outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site", sa.String(length=200), nullable=False),
        sa.Column("population", sa.String(length=200), nullable=False),
        sa.Column("unit", sa.String(length=64), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
        sa.UniqueConstraint("site", "population", name="uq_accounts_site_population"),
    )
    op.create_table(
        "objects",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("size >= 0", name=op.f("ck_objects_size")),
        sa.PrimaryKeyConstraint("digest", name="pk_objects"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("task", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index(
        "ix_outbox_unsent",
        "outbox",
        ["id"],
        unique=False,
        postgresql_where=sa.text("sent_at IS NULL"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("spec_digest", sa.String(length=71), nullable=False),
        sa.Column("epsilon_planned", sa.Double(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('draft', 'running', 'completed', 'failed')", name=op.f("ck_runs_state")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("name", name="uq_runs_name"),
    )
    op.create_index(
        "ix_runs_state",
        "runs",
        ["state"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "spaces",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("body", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_spaces"),
        sa.UniqueConstraint("name", name="uq_spaces_name"),
    )
    op.create_table(
        "clients",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("space_id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("managed", sa.Boolean(), nullable=False),
        sa.Column("budget_epsilon", sa.Double(), nullable=False),
        sa.Column("budget_delta", sa.Double(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "budget_delta > 0 AND budget_delta < 1", name=op.f("ck_clients_budget_delta")
        ),
        sa.CheckConstraint(
            "budget_epsilon > 0 AND budget_epsilon <= 100", name=op.f("ck_clients_budget_epsilon")
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_clients_account_id"),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name="fk_clients_space_id"),
        sa.PrimaryKeyConstraint("id", name="pk_clients"),
        sa.UniqueConstraint("id", "account_id", name="uq_clients_id_account_id"),
        sa.UniqueConstraint("name", name="uq_clients_name"),
    )
    op.create_index("ix_clients_account_id", "clients", ["account_id"], unique=False)
    op.create_index("ix_clients_space_id", "clients", ["space_id"], unique=False)
    op.create_table(
        "rounds",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("extended", sa.Boolean(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("frame_digest", sa.String(length=71), nullable=True),
        sa.Column("weights_digest", sa.String(length=71), nullable=True),
        sa.Column("optimiser_digest", sa.String(length=71), nullable=True),
        sa.CheckConstraint(
            "(state = 'published') = "
            "(frame_digest IS NOT NULL AND weights_digest IS NOT NULL "
            "AND optimiser_digest IS NOT NULL AND published_at IS NOT NULL)",
            name=op.f("ck_rounds_published"),
        ),
        sa.CheckConstraint(
            "state IN ('draft', 'abandoned') OR deadline IS NOT NULL",
            name=op.f("ck_rounds_deadline"),
        ),
        sa.CheckConstraint(
            "state IN ('draft', 'open', 'closing', 'aggregating', 'published', 'failed', "
            "'abandoned')",
            name=op.f("ck_rounds_state"),
        ),
        sa.CheckConstraint("number >= 0", name=op.f("ck_rounds_number")),
        sa.ForeignKeyConstraint(
            ["frame_digest"], ["objects.digest"], name="fk_rounds_frame_digest"
        ),
        sa.ForeignKeyConstraint(
            ["optimiser_digest"], ["objects.digest"], name="fk_rounds_optimiser_digest"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_rounds_run_id"),
        sa.ForeignKeyConstraint(
            ["weights_digest"], ["objects.digest"], name="fk_rounds_weights_digest"
        ),
        sa.PrimaryKeyConstraint("run_id", "number", name="pk_rounds"),
    )
    op.create_index("ix_rounds_frame_digest", "rounds", ["frame_digest"], unique=False)
    op.create_index("ix_rounds_weights_digest", "rounds", ["weights_digest"], unique=False)
    op.create_index(
        "uq_rounds_live",
        "rounds",
        ["run_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('draft', 'open', 'closing', 'aggregating')"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("available_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("queued_count", sa.Integer(), nullable=False),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint("(state = 'done') = (result IS NOT NULL)", name=op.f("ck_jobs_result")),
        sa.CheckConstraint("kind = 'aggregate'", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint(
            "state IN ('ready', 'leased', 'done', 'failed')", name=op.f("ck_jobs_state")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.number"],
            name="fk_jobs_run_id_round_number",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint(
            "run_id", "round_number", "kind", name="uq_jobs_run_id_round_number_kind"
        ),
    )
    op.create_table(
        "run_clients",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name="fk_run_clients_client_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_clients_run_id"),
        sa.PrimaryKeyConstraint("run_id", "client_id", name="pk_run_clients"),
        sa.UniqueConstraint("run_id", "position", name="uq_run_clients_run_id_position"),
    )
    op.create_index("ix_run_clients_client_id", "run_clients", ["client_id"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("label", sa.String(length=100), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column("mac", sa.LargeBinary(length=32), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(scope = 'client') = (client_id IS NOT NULL)", name=op.f("ck_tokens_client_scope")
        ),
        sa.CheckConstraint(
            "scope IN ('admin', 'client', 'worker', 'scientist', 'auditor')",
            name=op.f("ck_tokens_scope"),
        ),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name="fk_tokens_client_id"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("mac", name="uq_tokens_mac"),
    )
    op.create_index("ix_tokens_client_id", "tokens", ["client_id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("token_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("request_digest", sa.String(length=71), nullable=False),
        sa.Column("response", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name="fk_idempotency_keys_token_id"),
        sa.PrimaryKeyConstraint("token_id", "key", name="pk_idempotency_keys"),
    )
    op.create_index(
        "ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False
    )
    op.create_table(
        "ledger_entries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("reserve_id", sa.Uuid(), nullable=True),
        sa.Column("event", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(kind = 'reserve') = (event IS NOT NULL)", name=op.f("ck_ledger_entries_event")
        ),
        sa.CheckConstraint(
            "(kind = 'reserve') = (reserve_id IS NULL)", name=op.f("ck_ledger_entries_outcome")
        ),
        sa.CheckConstraint(
            "kind IN ('reserve', 'commit', 'lost')", name=op.f("ck_ledger_entries_kind")
        ),
        sa.CheckConstraint("attempt >= 1", name=op.f("ck_ledger_entries_attempt")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_ledger_entries_account_id"
        ),
        sa.ForeignKeyConstraint(
            ["client_id", "account_id"],
            ["clients.id", "clients.account_id"],
            name="fk_ledger_entries_client_id_account_id",
        ),
        sa.ForeignKeyConstraint(
            ["reserve_id", "account_id"],
            ["ledger_entries.id", "ledger_entries.account_id"],
            name="fk_ledger_entries_reserve_id_account_id",
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "client_id"],
            ["run_clients.run_id", "run_clients.client_id"],
            name="fk_ledger_entries_run_id_client_id",
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.number"],
            name="fk_ledger_entries_run_id_round_number",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_entries"),
        sa.UniqueConstraint("id", "account_id", name="uq_ledger_entries_id_account_id"),
    )
    op.create_index("ix_ledger_entries_account_id", "ledger_entries", ["account_id"], unique=False)
    op.create_index(
        "ix_ledger_entries_client_id_id", "ledger_entries", ["client_id", "id"], unique=False
    )
    op.create_index(
        "uq_ledger_entries_one_outcome",
        "ledger_entries",
        ["reserve_id"],
        unique=True,
        postgresql_where=sa.text("kind <> 'reserve'"),
    )
    op.create_index(
        "uq_ledger_entries_one_reservation",
        "ledger_entries",
        ["run_id", "round_number", "client_id", "attempt"],
        unique=True,
        postgresql_where=sa.text("kind = 'reserve'"),
    )
    op.create_table(
        "work_items",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("reservation_id", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("available_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("leased_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("queued_count", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "(state = 'excluded') = (reservation_id IS NULL)",
            name=op.f("ck_work_items_reservation"),
        ),
        sa.CheckConstraint(
            "state <> 'leased' OR lease_expires IS NOT NULL", name=op.f("ck_work_items_lease")
        ),
        sa.CheckConstraint(
            "state IN ('ready', 'leased', 'done', 'lost', 'refused', 'excluded')",
            name=op.f("ck_work_items_state"),
        ),
        sa.CheckConstraint("attempt >= 1", name=op.f("ck_work_items_attempt")),
        sa.ForeignKeyConstraint(
            ["reservation_id"], ["ledger_entries.id"], name="fk_work_items_reservation_id"
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "client_id"],
            ["run_clients.run_id", "run_clients.client_id"],
            name="fk_work_items_run_id_client_id",
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.number"],
            name="fk_work_items_run_id_round_number",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_work_items"),
        sa.UniqueConstraint("reservation_id", name="uq_work_items_reservation_id"),
        sa.UniqueConstraint(
            "run_id",
            "round_number",
            "client_id",
            "attempt",
            name="uq_work_items_run_id_round_number_client_id_attempt",
        ),
    )
    op.create_index(
        "ix_work_items_offered",
        "work_items",
        ["client_id"],
        unique=False,
        postgresql_where=sa.text("state IN ('ready', 'leased')"),
    )
    op.create_index(
        "uq_work_items_live",
        "work_items",
        ["run_id", "round_number", "client_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('ready', 'leased', 'done')"),
    )
    op.create_table(
        "updates",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("update_id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("work_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["digest"], ["objects.digest"], name="fk_updates_digest"),
        sa.ForeignKeyConstraint(
            ["run_id", "client_id"],
            ["run_clients.run_id", "run_clients.client_id"],
            name="fk_updates_run_id_client_id",
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number"],
            ["rounds.run_id", "rounds.number"],
            name="fk_updates_run_id_round_number",
        ),
        sa.ForeignKeyConstraint(["work_id"], ["work_items.id"], name="fk_updates_work_id"),
        sa.PrimaryKeyConstraint("id", name="pk_updates"),
        sa.UniqueConstraint("client_id", "update_id", name="uq_updates_client_id_update_id"),
        sa.UniqueConstraint(
            "run_id", "round_number", "client_id", name="uq_updates_run_id_round_number_client_id"
        ),
        sa.UniqueConstraint("work_id", name="uq_updates_work_id"),
    )


def downgrade() -> None:
    op.drop_table("updates")
    op.drop_table("work_items")
    op.drop_table("ledger_entries")
    op.drop_table("idempotency_keys")
    op.drop_table("tokens")
    op.drop_table("run_clients")
    op.drop_table("jobs")
    op.drop_table("rounds")
    op.drop_table("clients")
    op.drop_table("spaces")
    op.drop_table("runs")
    op.drop_table("outbox")
    op.drop_table("objects")
    op.drop_table("accounts")
