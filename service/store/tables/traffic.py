"""What was asked, answered and said of it."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from service.store.tables.common import NullableJson, created_at, metadata

completions = Table(
    "completions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("app", Text, nullable=False),
    Column("adapter", Text, nullable=False),  # invariant 3: exactly one
    Column("model", Text, nullable=False),  # as requested
    Column("user", Text),
    Column("metadata", JSONB, nullable=False),
    Column("messages", NullableJson),  # null: store was false
    Column("sampling", JSONB, nullable=False),
    Column("tokenizer_fingerprint", Text, nullable=False),
    Column("prompt_digest", Text, nullable=False),  # sha256 hex over the prompt's token ids
    Column("prompt_token_ids", ARRAY(Integer)),  # null: store was false, or the text was redacted
    # One message, beside system messages: the prompt holds nothing of a conversation.
    Column("single_turn", Boolean, nullable=False),
    Column("redacted", Boolean, nullable=False, server_default=text("false")),
    Column("outcome", Text, nullable=False, server_default="finished"),  # finished | cancelled | failed
    Column("first_token_seconds", Float),  # from the request's arrival
    Column("seconds", Float),  # until its last token
    created_at(),
    Index(None, "app", "prompt_digest"),
    Index(None, "user"),
    Index(None, "created_at"),
    Index(None, "adapter", "created_at"),
)

choices = Table(
    "choices",
    metadata,
    Column("completion_id", Text, ForeignKey("completions.id"), nullable=False),
    Column("choice_index", Integer, nullable=False),
    Column("text", Text),  # null: store was false
    Column("token_ids", ARRAY(Integer)),  # null: store was false
    Column("finish_reason", Text, nullable=False),
    Column("tokens", Integer),  # how many; null: recorded before they were counted, without token ids
    PrimaryKeyConstraint("completion_id", "choice_index"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("seq", BigInteger, Identity(), primary_key=True),
    Column("feedback_id", Text, nullable=False),
    Column("app", Text, nullable=False),
    Column("completion_id", Text, nullable=False),
    Column("choice_index", Integer, nullable=False),
    Column("user", Text, nullable=False, server_default=""),  # "": the app named no user
    Column("kind", Text, nullable=False),
    Column("target", Text, nullable=False),  # what of a user's votes of a kind only the last counts on: `votes.target`
    Column("rating", Text),
    Column("rival_completion_id", Text),  # of a comparison: what the choice is preferred to
    Column("rival_choice_index", Integer),
    Column("tie", Boolean, nullable=False, server_default=text("false")),
    Column("correction", Text),
    Column("comment", Text),
    Column("tags", ARRAY(Text), nullable=False),
    Column("prompt_digest", Text, nullable=False),  # of the completion
    Column("body_sha256", Text, nullable=False),
    Column("retracted", Boolean, nullable=False, server_default=text("false")),
    created_at(),
    UniqueConstraint("app", "feedback_id", name="uq_feedback_app_feedback_id"),
    ForeignKeyConstraint(
        ["completion_id", "choice_index"],
        ["choices.completion_id", "choices.choice_index"],
        name="fk_feedback_choice",
    ),
    ForeignKeyConstraint(
        ["rival_completion_id", "rival_choice_index"],
        ["choices.completion_id", "choices.choice_index"],
        name="fk_feedback_rival",
    ),
    CheckConstraint(
        "num_nonnulls(rating, rival_completion_id, correction) = 1 AND "
        "num_nonnulls(rival_completion_id, rival_choice_index) IN (0, 2)",
        name="says_one_thing",
    ),
    Index("ix_feedback_target", "target", "user", "kind", "seq"),
    Index("ix_feedback_prompt", "app", "prompt_digest"),
    Index("ix_feedback_user", "user", "app", "created_at"),
    Index("ix_feedback_choice", "completion_id", "choice_index"),
    Index("ix_feedback_rival", "rival_completion_id", "rival_choice_index"),
    Index("ix_feedback_tags", "tags", postgresql_using="gin", postgresql_where=text("tags <> '{}'")),
    Index(None, "created_at"),
)
