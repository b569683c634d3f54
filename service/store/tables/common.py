"""What all tables share: their names' convention, locks, and two kinds of columns."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, MetaData, func
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
AUDIT_LOCK = 7_304

NullableJson = JSONB(none_as_null=True)  # None is SQL's null, not the JSON value null


def created_at() -> Column:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())
