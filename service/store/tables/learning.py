"""Rounds, what they took, and the adapters that came out."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Sequence,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from service.store.tables.common import NullableJson, created_at, metadata

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
    Column("funnel", NullableJson),
    Column("report", NullableJson),
    Column("verdict", NullableJson),
    Column("candidate", NullableJson),  # an adapter from outside; null: the round trains one
    Column("parity", NullableJson),
    Column("behaviour", NullableJson),  # what was measured on the candidate's own answers
    Column("canary", NullableJson),  # where the canary is and what it has seen
    Column("watch", NullableJson),  # of a promoted adapter: how long it is watched, and what was seen
    Column("environment", NullableJson),  # code, packages and machine that the round ran with
    Column("approved_by", Text),
    Column("pairs_fate", Text, nullable=False, server_default="learned"),  # learned | released | retired
    created_at(),
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
    Column("split", Text, nullable=False),  # train | held_out | settled
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
    Column("verdict", NullableJson),
    created_at(),
    Column("added_by", Text),  # null: a round trained it
    Column("deleted_at", DateTime(timezone=True)),  # its files are gone; null: they are kept
)

adapter_ordinals = Sequence("adapter_ordinals", metadata=metadata)  # the n in `policy-<n>-<digest8>`
