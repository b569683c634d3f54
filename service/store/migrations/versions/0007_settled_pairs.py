"""A round takes along the minority beside duplicates: `split` names what both are."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("UPDATE round_pairs SET split = 'settled' WHERE split = 'duplicate'")


def downgrade() -> None:
    op.execute("UPDATE round_pairs SET split = 'duplicate' WHERE split = 'settled'")
