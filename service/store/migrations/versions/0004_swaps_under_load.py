"""A split of the traffic, requests that did not finish, limits of keys, leases on adapter files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("route", sa.Column("candidate_share", sa.Float(), nullable=False, server_default=sa.text("0")))
    op.add_column("route", sa.Column("baseline", sa.Text()))
    op.add_column("route", sa.Column("baseline_share", sa.Float(), nullable=False, server_default=sa.text("0")))
    op.add_column("completions", sa.Column("outcome", sa.Text(), nullable=False, server_default="finished"))
    op.add_column("completions", sa.Column("first_token_seconds", sa.Float()))
    op.add_column("completions", sa.Column("seconds", sa.Float()))
    op.create_index(op.f("ix_completions_adapter"), "completions", ["adapter", "created_at"])
    op.add_column("choices", sa.Column("tokens", sa.Integer()))
    op.execute("UPDATE choices SET tokens = cardinality(token_ids) WHERE token_ids IS NOT NULL")
    for limit in ("requests_per_minute", "tokens_per_minute", "concurrent_requests"):
        op.add_column("keys", sa.Column(limit, sa.Integer()))
    op.add_column("adapters", sa.Column("deleted_at", sa.DateTime(timezone=True)))
    op.create_table(
        "adapter_leases",
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("replica", sa.Text(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("adapter", "replica", name="pk_adapter_leases"),
    )


def downgrade() -> None:
    """Requests that did not finish are gone with their votes: the older schema would take them for answers."""
    op.drop_table("adapter_leases")
    op.drop_column("adapters", "deleted_at")
    for limit in ("concurrent_requests", "tokens_per_minute", "requests_per_minute"):
        op.drop_column("keys", limit)
    unfinished = "SELECT id FROM completions WHERE outcome <> 'finished'"
    op.execute(f"DELETE FROM feedback WHERE completion_id IN ({unfinished}) OR rival_completion_id IN ({unfinished})")
    op.execute(f"DELETE FROM choices WHERE completion_id IN ({unfinished})")
    op.execute("DELETE FROM completions WHERE outcome <> 'finished'")
    op.drop_column("choices", "tokens")
    op.drop_index(op.f("ix_completions_adapter"), "completions")
    for column in ("seconds", "first_token_seconds", "outcome"):
        op.drop_column("completions", column)
    for column in ("baseline_share", "baseline", "candidate_share"):
        op.drop_column("route", column)
