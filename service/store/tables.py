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
    Column("prompt_token_ids", ARRAY(Integer)),  # null: store was false
    _now(),
    Index(None, "app", "prompt_digest"),
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
    Column("rating", Text, nullable=False),
    Column("comment", Text),
    Column("tags", ARRAY(Text), nullable=False),
    Column("body_sha256", Text, nullable=False),
    Column("retracted", Boolean, nullable=False, server_default=text("false")),
    _now(),
    UniqueConstraint("app", "feedback_id", name="uq_feedback_app_feedback_id"),
    ForeignKeyConstraint(
        ["completion_id", "choice_index"],
        ["choices.completion_id", "choices.choice_index"],
        name="fk_feedback_choice",
    ),
    Index("ix_feedback_target", "completion_id", "choice_index", "user", "kind", "seq"),
)

imported_pairs = Table(
    "imported_pairs",
    metadata,
    Column("id", Text, primary_key=True),  # sha256 hex of the content, so a second import adds nothing
    Column("seq", BigInteger, Identity(), nullable=False, unique=True),
    Column("messages", JSONB, nullable=False),
    Column("chosen", Text, nullable=False),
    Column("rejected", Text, nullable=False),
    _now(),
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
    Column("origin", Text, nullable=False),
    Column("chosen_completion_id", Text),  # null for an imported pair
    Column("chosen_choice_index", Integer),
    Column("rejected_completion_id", Text),
    Column("rejected_choice_index", Integer),
    Column("votes", ARRAY(BigInteger), nullable=False),
    PrimaryKeyConstraint("round", "pair_id"),
    Index(None, "pair_id"),
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
