"""Comparisons, corrections and ties; pairs kept up to date prompt by prompt; quarantine; single thumbs from files.

Votes that are there already are given their prompt and their target; all their prompts are matched anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    _completions()
    _feedback()
    _derived()
    _fates()
    _quarantine()
    _imports_and_rounds()
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
    op.execute(
        "INSERT INTO stale_prompts (app, prompt_digest) "
        "SELECT DISTINCT app, prompt_digest FROM feedback ORDER BY app, prompt_digest"
    )


def downgrade() -> None:
    """What the older schema cannot hold is gone: comparisons, corrections, single thumbs from files, quarantine."""
    op.drop_table("secrets")
    op.execute("DELETE FROM imported_pairs WHERE chosen IS NULL OR rejected IS NULL")
    op.drop_constraint(op.f("ck_imported_pairs_has_an_answer"), "imported_pairs")
    op.drop_column("imported_pairs", "format")
    for column in ("chosen", "rejected"):
        op.alter_column("imported_pairs", column, nullable=False)
    op.drop_index("ix_round_pairs_rejected_completion_id", "round_pairs")
    op.drop_index("ix_round_pairs_chosen_completion_id", "round_pairs")
    op.drop_index("ix_round_pairs_voted_at", "round_pairs")
    for column in ("correction", "charged_to", "voted_at"):
        op.drop_column("round_pairs", column)
    op.drop_index("ix_imported_pairs_stale", "imported_pairs")
    op.drop_column("imported_pairs", "stale")
    op.alter_column("round_pairs", "source", new_column_name="origin")
    op.execute("UPDATE round_pairs SET origin = 'votes' WHERE origin <> 'import'")
    for table in (
        "quarantined_votes",
        "quarantine",
        "vote_fates",
        "preference_state",
        "preference_pairs",
        "stale_prompts",
    ):
        op.drop_table(table)
    op.execute("DELETE FROM feedback WHERE kind <> 'rating'")
    for index in ("tags", "created_at", "rival", "choice", "user", "prompt", "target"):
        op.drop_index(f"ix_feedback_{index}", "feedback")
    op.drop_constraint(op.f("ck_feedback_says_one_thing"), "feedback")
    op.drop_constraint("fk_feedback_rival", "feedback")
    for column in ("target", "rival_completion_id", "rival_choice_index", "tie", "correction", "prompt_digest"):
        op.drop_column("feedback", column)
    op.alter_column("feedback", "rating", nullable=False)
    op.create_index("ix_feedback_target", "feedback", ["completion_id", "choice_index", "user", "kind", "seq"])
    for index in ("created_at", "user"):
        op.drop_index(f"ix_completions_{index}", "completions")
    for column in ("single_turn", "redacted"):
        op.drop_column("completions", column)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def _completions() -> None:
    op.add_column("completions", sa.Column("single_turn", sa.Boolean()))
    op.add_column("completions", sa.Column("redacted", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute(
        "UPDATE completions SET single_turn = messages IS NOT NULL AND "
        "(SELECT count(*) FROM jsonb_array_elements(messages) AS message WHERE message ->> 'role' <> 'system') = 1"
    )
    op.alter_column("completions", "single_turn", nullable=False)
    op.create_index("ix_completions_user", "completions", ["user"])
    op.create_index("ix_completions_created_at", "completions", ["created_at"])


def _feedback() -> None:
    for column in (
        sa.Column("target", sa.Text()),
        sa.Column("rival_completion_id", sa.Text()),
        sa.Column("rival_choice_index", sa.Integer()),
        sa.Column("tie", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("correction", sa.Text()),
        sa.Column("prompt_digest", sa.Text()),
    ):
        op.add_column("feedback", column)
    op.alter_column("feedback", "rating", nullable=True)
    op.execute(
        "UPDATE feedback SET target = completion_id || '/' || choice_index, prompt_digest = completions.prompt_digest "
        "FROM completions WHERE completions.id = feedback.completion_id"
    )
    for name in ("target", "prompt_digest"):
        op.alter_column("feedback", name, nullable=False)
    op.create_foreign_key(
        "fk_feedback_rival",
        "feedback",
        "choices",
        ["rival_completion_id", "rival_choice_index"],
        ["completion_id", "choice_index"],
    )
    op.create_check_constraint(
        op.f("ck_feedback_says_one_thing"),
        "feedback",
        "num_nonnulls(rating, rival_completion_id, correction) = 1 AND "
        "num_nonnulls(rival_completion_id, rival_choice_index) IN (0, 2)",
    )
    op.drop_index("ix_feedback_target", "feedback")
    op.create_index("ix_feedback_target", "feedback", ["target", "user", "kind", "seq"])
    op.create_index("ix_feedback_prompt", "feedback", ["app", "prompt_digest"])
    op.create_index("ix_feedback_user", "feedback", ["user", "app", "created_at"])
    op.create_index("ix_feedback_choice", "feedback", ["completion_id", "choice_index"])
    op.create_index("ix_feedback_rival", "feedback", ["rival_completion_id", "rival_choice_index"])
    op.create_index("ix_feedback_created_at", "feedback", ["created_at"])
    op.create_index(
        "ix_feedback_tags", "feedback", ["tags"], postgresql_using="gin", postgresql_where=sa.text("tags <> '{}'")
    )


def _derived() -> None:
    op.create_table(
        "stale_prompts",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("prompt_digest", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stale_prompts"),
    )
    op.create_index("ix_stale_prompts_app", "stale_prompts", ["app", "prompt_digest"])
    op.create_table(
        "preference_pairs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("app", sa.Text()),
        sa.Column("prompt_digest", sa.Text(), nullable=False),
        sa.Column("chosen_completion_id", sa.Text()),
        sa.Column("chosen_choice_index", sa.Integer()),
        sa.Column("rejected_completion_id", sa.Text()),
        sa.Column("rejected_choice_index", sa.Integer()),
        sa.Column("correction", sa.BigInteger()),
        sa.Column("votes", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("voter", sa.Text()),
        sa.Column("voters", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("charged_to", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("adapters", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("tags", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("voted_at", sa.DateTime(timezone=True)),
        sa.Column("chosen_length", sa.Integer(), nullable=False),
        sa.Column("rejected_length", sa.Integer(), nullable=False),
        sa.Column("copied", sa.Float(), nullable=False),
        sa.Column("signature", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("alone", sa.Text()),
        sa.Column("left_out", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_preference_pairs"),
    )
    op.create_index("ix_preference_pairs_app", "preference_pairs", ["app", "prompt_digest"])
    op.create_index("ix_preference_pairs_source", "preference_pairs", ["source"])
    op.create_index("ix_preference_pairs_voter", "preference_pairs", ["voter", "voted_at"])
    for column in ("alone", "left_out"):
        op.create_index(
            f"ix_preference_pairs_{column}",
            "preference_pairs",
            [column],
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
        )
    op.create_table(
        "preference_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("guarded", sa.Text()),
        sa.Column("funnels", JSONB(none_as_null=True)),
        sa.PrimaryKeyConstraint("id", name="pk_preference_state"),
        sa.CheckConstraint("id = 1", name=op.f("ck_preference_state_single_row")),
    )


def _fates() -> None:
    op.create_table(
        "vote_fates",
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("prompt_digest", sa.Text(), nullable=False),
        sa.Column("pair_id", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("seq", name="pk_vote_fates"),
        sa.ForeignKeyConstraint(["seq"], ["feedback.seq"], name="fk_vote_fates_seq", ondelete="CASCADE"),
    )
    op.create_index("ix_vote_fates_app", "vote_fates", ["app", "prompt_digest"])
    op.create_index("ix_vote_fates_reason", "vote_fates", ["reason", "seq"])
    op.create_index("ix_vote_fates_pair_id", "vote_fates", ["pair_id"])


def _quarantine() -> None:
    op.create_table(
        "quarantine",
        sa.Column("id", sa.Integer(), sa.Identity(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("evidence", JSONB(), nullable=False),
        sa.Column("status", sa.Text(), server_default="held", nullable=False),
        _time("created_at"),
        sa.Column("decided_at", sa.DateTime(timezone=True)),
        sa.Column("decided_by", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_quarantine"),
    )
    op.create_index("ix_quarantine_app", "quarantine", ["app", "user"])
    op.create_index("ix_quarantine_status", "quarantine", ["status"])
    op.create_index(
        "uq_quarantine_held",
        "quarantine",
        ["kind", "app", "user"],
        unique=True,
        postgresql_where=sa.text("status = 'held'"),
    )
    op.create_table(
        "quarantined_votes",
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("quarantine_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq", "quarantine_id", name="pk_quarantined_votes"),
        sa.ForeignKeyConstraint(["seq"], ["feedback.seq"], name="fk_quarantined_votes_seq", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["quarantine_id"], ["quarantine.id"], name="fk_quarantined_votes_quarantine_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_quarantined_votes_quarantine_id", "quarantined_votes", ["quarantine_id"])


def _imports_and_rounds() -> None:
    for column in ("chosen", "rejected"):
        op.alter_column("imported_pairs", column, nullable=True)
    op.add_column("imported_pairs", sa.Column("format", sa.Text(), server_default="trl", nullable=False))
    op.alter_column("imported_pairs", "format", server_default=None)
    op.create_check_constraint(
        op.f("ck_imported_pairs_has_an_answer"), "imported_pairs", "num_nonnulls(chosen, rejected) > 0"
    )
    op.add_column("imported_pairs", sa.Column("stale", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.create_index("ix_imported_pairs_stale", "imported_pairs", ["seq"], postgresql_where=sa.text("stale"))
    op.alter_column("round_pairs", "origin", new_column_name="source")
    op.execute("UPDATE round_pairs SET source = 'same_prompt' WHERE source = 'votes' AND "
               "num_nonnulls(chosen_completion_id, rejected_completion_id) = 2")  # fmt: skip
    op.execute("UPDATE round_pairs SET source = 'thumb' WHERE source = 'votes'")
    op.add_column("round_pairs", sa.Column("correction", sa.BigInteger()))
    op.add_column(
        "round_pairs",
        sa.Column("charged_to", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    )
    op.add_column("round_pairs", sa.Column("voted_at", sa.DateTime(timezone=True)))
    op.create_index("ix_round_pairs_voted_at", "round_pairs", ["voted_at"])
    op.create_index("ix_round_pairs_chosen_completion_id", "round_pairs", ["chosen_completion_id"])
    op.create_index("ix_round_pairs_rejected_completion_id", "round_pairs", ["rejected_completion_id"])
