"""The first schema: keys, completions, feedback, imported pairs, rounds, adapters, the route and the audit.

Spelled out in full, for `tables.py` moves on and a step that was released must not.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def upgrade() -> None:
    _keys()
    _completions()
    _feedback()
    _imported_pairs()
    _rounds()
    _adapters_and_route()
    _audit()


def downgrade() -> None:
    """Back to an empty database: all that was ever kept is gone."""
    for table in ("audit", "route", "adapters", "round_pairs", "round_events", "rounds", "imported_pairs", "feedback"):
        op.drop_table(table)
    op.execute(sa.schema.DropSequence(sa.Sequence("adapter_ordinals")))
    for table in ("choices", "completions", "keys"):
        op.drop_table(table)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def _seq() -> sa.Column[int]:
    return sa.Column("seq", sa.BigInteger(), sa.Identity(), nullable=False)


def _keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.Text(), nullable=False),
        _time("created_at"),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )


def _completions() -> None:
    op.create_table(
        "completions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("user", sa.Text()),
        sa.Column("metadata", JSONB(), nullable=False),
        sa.Column("messages", JSONB()),
        sa.Column("sampling", JSONB(), nullable=False),
        sa.Column("tokenizer_fingerprint", sa.Text(), nullable=False),
        sa.Column("prompt_digest", sa.Text(), nullable=False),
        sa.Column("prompt_token_ids", sa.ARRAY(sa.Integer())),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_completions"),
    )
    op.create_index("ix_completions_app", "completions", ["app", "prompt_digest"])
    op.create_table(
        "choices",
        sa.Column("completion_id", sa.Text(), nullable=False),
        sa.Column("choice_index", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text()),
        sa.Column("token_ids", sa.ARRAY(sa.Integer())),
        sa.Column("finish_reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("completion_id", "choice_index", name="pk_choices"),
        sa.ForeignKeyConstraint(["completion_id"], ["completions.id"], name="fk_choices_completion_id"),
    )


def _feedback() -> None:
    op.create_table(
        "feedback",
        _seq(),
        sa.Column("feedback_id", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("completion_id", sa.Text(), nullable=False),
        sa.Column("choice_index", sa.Integer(), nullable=False),
        sa.Column("user", sa.Text(), server_default="", nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("rating", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text()),
        sa.Column("tags", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("body_sha256", sa.Text(), nullable=False),
        sa.Column("retracted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("seq", name="pk_feedback"),
        sa.UniqueConstraint("app", "feedback_id", name="uq_feedback_app_feedback_id"),
        sa.ForeignKeyConstraint(
            ["completion_id", "choice_index"],
            ["choices.completion_id", "choices.choice_index"],
            name="fk_feedback_choice",
        ),
    )
    op.create_index("ix_feedback_target", "feedback", ["completion_id", "choice_index", "user", "kind", "seq"])


def _imported_pairs() -> None:
    op.create_table(
        "imported_pairs",
        sa.Column("id", sa.Text(), nullable=False),
        _seq(),
        sa.Column("messages", JSONB(), nullable=False),
        sa.Column("chosen", sa.Text(), nullable=False),
        sa.Column("rejected", sa.Text(), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_imported_pairs"),
        sa.UniqueConstraint("seq", name="uq_imported_pairs_seq"),
    )


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("n", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("note", sa.Text()),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("body_sha256", sa.Text(), nullable=False),
        sa.Column("settings", JSONB(), nullable=False),
        sa.Column("parent", sa.Text()),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("adapter_ordinal", sa.Integer()),
        sa.Column("snapshot", sa.Text()),
        sa.Column("pair_digest", sa.Text()),
        sa.Column("pairs", sa.Integer()),
        sa.Column("adapter", sa.Text()),
        sa.Column("funnel", JSONB()),
        sa.Column("report", JSONB()),
        sa.Column("verdict", JSONB()),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("n", name="pk_rounds"),
        sa.UniqueConstraint("idempotency_key", name="uq_rounds_idempotency_key"),
    )
    op.create_index(
        "uq_rounds_one_running",
        "rounds",
        [sa.text("(true)")],
        unique=True,
        postgresql_where=sa.text("state NOT IN ('promoted', 'rejected', 'failed', 'cancelled')"),
    )
    op.create_table(
        "round_events",
        _seq(),
        sa.Column("round", sa.Integer(), nullable=False),
        _time("at"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_round_events"),
        sa.ForeignKeyConstraint(["round"], ["rounds.n"], name="fk_round_events_round"),
    )
    op.create_index("ix_round_events_round", "round_events", ["round", "seq"])
    op.create_table(
        "round_pairs",
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("pair_id", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("chosen_completion_id", sa.Text()),
        sa.Column("chosen_choice_index", sa.Integer()),
        sa.Column("rejected_completion_id", sa.Text()),
        sa.Column("rejected_choice_index", sa.Integer()),
        sa.Column("votes", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.PrimaryKeyConstraint("round", "pair_id", name="pk_round_pairs"),
        sa.ForeignKeyConstraint(["round"], ["rounds.n"], name="fk_round_pairs_round"),
    )
    op.create_index("ix_round_pairs_pair_id", "round_pairs", ["pair_id"])


def _adapters_and_route() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("adapter_ordinals")))
    op.create_table(
        "adapters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer()),
        sa.Column("weights_sha256", sa.Text(), nullable=False),
        sa.Column("manifest_sha256", sa.Text(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("pair_digest", sa.Text()),
        sa.Column("verdict", JSONB()),
        _time("created_at"),
        sa.PrimaryKeyConstraint("name", name="pk_adapters"),
        sa.UniqueConstraint("ordinal", name="uq_adapters_ordinal"),
        sa.ForeignKeyConstraint(["round"], ["rounds.n"], name="fk_adapters_round"),
    )
    route = op.create_table(
        "route",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("stable", sa.Text(), nullable=False),
        sa.Column("previous", sa.Text()),
        sa.Column("candidate", sa.Text()),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_route"),
        sa.CheckConstraint("id = 1", name="ck_route_single_row"),
    )
    op.bulk_insert(route, [{"id": 1, "generation": 0, "stable": "base"}])


def _audit() -> None:
    op.create_table(
        "audit",
        _seq(),
        _time("at"),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
