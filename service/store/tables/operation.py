"""Who may call, who is served, who changed it, and what all processes share."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    Identity,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from service.store.tables.common import created_at, metadata

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("app", Text, nullable=False),
    Column("secret_sha256", Text, nullable=False),  # of a 256-bit random secret, so no slow hash is needed
    created_at(),
    Column("revoked_at", DateTime(timezone=True)),
    Column("requests_per_minute", Integer),  # null, here and below: what the settings say
    Column("tokens_per_minute", Integer),
    Column("concurrent_requests", Integer),
)

route = Table(
    "route",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("stable", Text, nullable=False),
    Column("previous", Text),
    Column("candidate", Text),
    Column("candidate_share", Float, nullable=False, server_default=text("0")),
    Column("baseline", Text),
    Column("baseline_share", Float, nullable=False, server_default=text("0")),
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
    Column("digest", Text, nullable=False),  # covers the entry before: service/store/audit_chain.py
)

# While the row is there no round starts by itself.
pause = Table(
    "pause",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("who", Text, nullable=False),
    Column("reason", Text),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("id = 1", name="single_row"),
)

# What operators are to be told; webhooks are sent from here, so that none is lost with a process.
alarms = Table(
    "alarms",
    metadata,
    Column("seq", BigInteger, Identity(), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("detail", JSONB, nullable=False),
    Column("once", Text, unique=True),  # what is rung once only; null: each time
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("due_at", DateTime(timezone=True), nullable=False, server_default=func.now()),  # of the next attempt
    Column("delivered_to", ARRAY(Text), nullable=False, server_default=text("'{}'")),  # digests of webhooks' URLs
    Column("delivered_at", DateTime(timezone=True)),
    Column("trouble", Text),  # why the last attempt failed
)

# Which replica needs which published adapter: its files are not deleted before that time.
adapter_leases = Table(
    "adapter_leases",
    metadata,
    Column("adapter", Text, nullable=False),
    Column("replica", Text, nullable=False),
    Column("until", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("adapter", "replica"),
)

# What the first start found in model.name.
base_model = Table(
    "base_model",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("base_model", Text, nullable=False),  # sha256, as is the next: training/fingerprints.py
    Column("tokenizer", Text, nullable=False),
    created_at(),
    CheckConstraint("id = 1", name="single_row"),
)

# Random values that all processes share: made once by whoever needs one first.
secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    created_at(),
)
