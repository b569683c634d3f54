"""What follows from the votes and what came from files: pairs, fates, quarantine."""

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
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from service.store.tables.common import NullableJson, created_at, metadata

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
    Column("funnels", NullableJson),
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
    created_at(),
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
    created_at(),
    CheckConstraint("num_nonnulls(chosen, rejected) > 0", name="has_an_answer"),
    Index("ix_imported_pairs_stale", "seq", postgresql_where=text("stale")),
)
