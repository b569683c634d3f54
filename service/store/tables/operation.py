"""Who may call, who is served, who changed it, and what all processes share."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Identity, Integer, Table, Text, func
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
)

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
    created_at(),
)
