"""What a client has signed of its masks, kept with its vector of a secure sum.

Programs of before find nothing changed. A round of theirs cannot go on with this program: its
clients are in another session here, and what has come without a signature is not opened.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None
expands = True


def upgrade() -> None:
    op.add_column("updates", sa.Column("attestation", sa.String(128), nullable=True))
    op.create_check_constraint(
        op.f("ck_updates_attestation"), "updates", "attestation ~ '^[0-9a-f]{128}$'"
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_updates_attestation"), "updates", type_="check")
    op.drop_column("updates", "attestation")
