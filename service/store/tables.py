"""The tables, as SQLAlchemy Core metadata. Migrations in `migrations/` create them; nothing else does.

Order is by the store's own sequences (`seq`), never by clocks: clocks of different nodes disagree.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


# Advisory locks of the database; each number stands for one thing that only one process may do at a time.
MIGRATE_LOCK = 7_301
CREATE_ROUND_LOCK = 7_302
MATCH_LOCK = 7_303

_NullableJson = JSONB(none_as_null=True)  # None is SQL's null, not the JSON value null


def _now() -> Column:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("app", Text, nullable=False),
    Column("secret_sha256", Text, nullable=False),  # of a 256-bit random secret, so no slow hash is needed
    _now(),
    Column("revoked_at", DateTime(timezone=True)),
)

completions = Table(
    "completions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("app", Text, nullable=False),
    Column("adapter", Text, nullable=False),  # invariant 3: exactly one
    Column("model", Text, nullable=False),  # as requested
    Column("user", Text),
    Column("metadata", JSONB, nullable=False),
    Column("messages", _NullableJson),  # null: store was false
    Column("sampling", JSONB, nullable=False),
    Column("tokenizer_fingerprint", Text, nullable=False),
    Column("prompt_digest", Text, nullable=False),  # sha256 hex over the prompt's token ids
    Column("prompt_token_ids", ARRAY(Integer)),  # null: store was false, or the text was redacted
    # One message, beside system messages: the prompt holds nothing of a conversation.
    Column("single_turn", Boolean, nullable=False),
    Column("redacted", Boolean, nullable=False, server_default=text("false")),
    _now(),
    Index(None, "app", "prompt_digest"),
    Index(None, "user"),
    Index(None, "created_at"),
)

choices = Table(
    "choices",
    metadata,
    Column("completion_id", Text, ForeignKey("completions.id"), nullable=False),
    Column("choice_index", Integer, nullable=False),
    Column("text", Text),  # null: store was false
    Column("token_ids", ARRAY(Integer)),  # null: store was false
    Column("finish_reason", Text, nullable=False),
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
    _now(),
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

# Prompts whose pairs must be made anew. Every vote, retraction, release, erasure and end of a round adds its prompts
# here in its own transaction; whoever matches them deletes the rows in the transaction that writes the pairs. A queue
# of rows, and no watermark of `seq`: a vote that commits late would be passed over by one.
stale_prompts = Table(
    "stale_prompts",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("app", Text, nullable=False),
    Column("prompt_digest", Text, nullable=False),
    Index(None, "app", "prompt_digest"),
)

# All pairs, and thumbs without a partner, that a round may still learn: they follow from the votes, prompt by prompt,
# and from what was imported. Made by matching.
preference_pairs = Table(
    "preference_pairs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("app", Text),  # null, as voter and voted_at: an imported pair
    Column("prompt_digest", Text, nullable=False),
    Column("chosen_completion_id", Text),
    Column("chosen_choice_index", Integer),
    Column("rejected_completion_id", Text),
    Column("rejected_choice_index", Integer),
    Column("correction", BigInteger),  # seq of the vote whose text is the chosen answer
    Column("votes", ARRAY(BigInteger), nullable=False),
    Column("voter", Text),
    Column("voters", ARRAY(Text), nullable=False),
    Column("charged_to", ARRAY(Text), nullable=False),  # of them, whose caps it counts against
    Column("adapters", ARRAY(Text), nullable=False),
    Column("tags", ARRAY(Text), nullable=False),
    Column("voted_at", DateTime(timezone=True)),
    Column("chosen_length", Integer, nullable=False),  # characters
    Column("rejected_length", Integer, nullable=False),  # characters
    Column("copied", Float, nullable=False),
    Column("signature", ARRAY(BigInteger), nullable=False),
    Column("alone", Text),  # of a single thumb: why it is in no pair
    Column("left_out", Text),  # why a guard left it out when they last looked; null: none did
    Index(None, "app", "prompt_digest"),
    Index(None, "source"),
    Index(None, "voter", "voted_at"),
    Index(None, "alone", postgresql_where=text("alone IS NOT NULL")),
    Index(None, "left_out", postgresql_where=text("left_out IS NOT NULL")),
)

# One row, made by the first batch: how far pairs and guards are, so that nobody does again what was done.
preference_state = Table(
    "preference_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("generation", BigInteger, nullable=False),  # of pairs and fates: each batch of matching makes the next
    Column("guarded", Text),  # the state of the store of which `left_out` of the pairs and `funnels` tell
    Column("funnels", _NullableJson),
    CheckConstraint("id = 1", name="single_row"),
)

# What became of each effective vote when its prompt was last matched.
vote_fates = Table(
    "vote_fates",
    metadata,
    Column("seq", BigInteger, ForeignKey("feedback.seq", ondelete="CASCADE"), primary_key=True),
    Column("app", Text, nullable=False),
    Column("prompt_digest", Text, nullable=False),
    Column("pair_id", Text),  # null: it is in none
    Column("reason", Text),  # null: it is in a pair
    Index(None, "app", "prompt_digest"),
    Index(None, "reason", "seq"),
    Index(None, "pair_id"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("kind", Text, nullable=False),  # burst, flips, user_dominance, phrase_dominance
    Column("app", Text, nullable=False),
    Column("user", Text, nullable=False),  # "": the app named no user
    Column("why", Text, nullable=False),
    Column("evidence", JSONB, nullable=False),
    Column("status", Text, nullable=False, server_default="held"),  # held, released, dropped
    _now(),
    Column("decided_at", DateTime(timezone=True)),
    Column("decided_by", Text),
    Index(None, "app", "user"),
    Index(None, "status"),
    Index("uq_quarantine_held", "kind", "app", "user", unique=True, postgresql_where=text("status = 'held'")),
)

quarantined_votes = Table(
    "quarantined_votes",
    metadata,
    Column("seq", BigInteger, ForeignKey("feedback.seq", ondelete="CASCADE"), nullable=False),
    Column("quarantine_id", Integer, ForeignKey("quarantine.id", ondelete="CASCADE"), nullable=False),
    PrimaryKeyConstraint("seq", "quarantine_id"),
    Index(None, "quarantine_id"),
)

imported_pairs = Table(
    "imported_pairs",
    metadata,
    Column("id", Text, primary_key=True),  # sha256 hex of the content, so a second import adds nothing
    Column("seq", BigInteger, Identity(), nullable=False, unique=True),
    Column("messages", JSONB, nullable=False),
    Column("chosen", Text),  # null: a single thumb down
    Column("rejected", Text),  # null: a single thumb up
    Column("format", Text, nullable=False),  # as it was read
    # Like `stale_prompts`: matching is to look whether it is to be among the pairs, for it is new or a round took it.
    Column("stale", Boolean, nullable=False, server_default=text("true")),
    _now(),
    CheckConstraint("num_nonnulls(chosen, rejected) > 0", name="has_an_answer"),
    Index("ix_imported_pairs_stale", "seq", postgresql_where=text("stale")),
)

rounds = Table(
    "rounds",
    metadata,
    Column("n", Integer, Identity(), primary_key=True),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("note", Text),
    Column("requested_by", Text, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("body_sha256", Text, nullable=False),
    Column("settings", JSONB, nullable=False),
    Column("parent", Text),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("adapter_ordinal", Integer),
    Column("snapshot", Text),
    Column("pair_digest", Text),
    Column("pairs", Integer),
    Column("adapter", Text),
    Column("funnel", _NullableJson),
    Column("report", _NullableJson),
    Column("verdict", _NullableJson),
    Column("candidate", _NullableJson),  # an adapter from outside; null: the round trains one
    Column("parity", _NullableJson),
    _now(),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

# Invariant 7, held by the database itself: at most one round is not in a final state.
Index(
    "uq_rounds_one_running",
    text("(true)"),
    unique=True,
    _table=rounds,
    postgresql_where=text("state NOT IN ('promoted', 'rejected', 'failed', 'cancelled')"),
)

round_events = Table(
    "round_events",
    metadata,
    Column("seq", BigInteger, Identity(), primary_key=True),
    Column("round", Integer, ForeignKey("rounds.n"), nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("kind", Text, nullable=False),
    Column("data", JSONB, nullable=False),
    Index(None, "round", "seq"),
)

round_pairs = Table(
    "round_pairs",
    metadata,
    Column("round", Integer, ForeignKey("rounds.n"), nullable=False),
    Column("pair_id", Text, nullable=False),
    Column("split", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("correction", BigInteger),  # seq of the vote whose text is the chosen answer
    Column("chosen_completion_id", Text),  # null for an imported pair and a correction
    Column("chosen_choice_index", Integer),
    Column("rejected_completion_id", Text),
    Column("rejected_choice_index", Integer),
    Column("votes", ARRAY(BigInteger), nullable=False),
    Column("charged_to", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("voted_at", DateTime(timezone=True)),  # null: an imported pair, or from before a day's pairs were counted
    PrimaryKeyConstraint("round", "pair_id"),
    Index(None, "pair_id"),
    Index(None, "chosen_completion_id"),
    Index(None, "rejected_completion_id"),
    Index(None, "voted_at"),
)

adapters = Table(
    "adapters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("ordinal", Integer, nullable=False, unique=True),
    Column("parent", Text, nullable=False),
    Column("round", Integer, ForeignKey("rounds.n")),
    Column("weights_sha256", Text, nullable=False),
    Column("manifest_sha256", Text, nullable=False),
    Column("directory", Text, nullable=False),
    Column("pair_digest", Text),
    Column("verdict", _NullableJson),
    _now(),
    Column("added_by", Text),  # null: a round trained it
)

adapter_ordinals = Sequence("adapter_ordinals", metadata=metadata)  # the n in `policy-<n>-<digest8>`

route = Table(
    "route",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("stable", Text, nullable=False),
    Column("previous", Text),
    Column("candidate", Text),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("id = 1", name="single_row"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, Identity(), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("who", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
)

# Random values that all processes share: made once by whoever needs one first.
secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    _now(),
)
