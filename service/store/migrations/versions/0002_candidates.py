"""Adapters from outside: the candidate of a round, who brought it, and how serving agreed with training."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("rounds", sa.Column("candidate", JSONB()))
    op.add_column("rounds", sa.Column("parity", JSONB()))
    op.add_column("adapters", sa.Column("added_by", sa.Text()))


def downgrade() -> None:
    """The rounds of candidates stay, as rounds without a report of training."""
    op.drop_column("adapters", "added_by")
    op.drop_column("rounds", "parity")
    op.drop_column("rounds", "candidate")
