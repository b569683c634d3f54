"""Canaries, approvals, watch windows, what a round stood on, a pause, alarms, and an audit log whose entries are chained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from service.store.audit import pseudonym
from service.store.audit_chain import GENESIS, entry_digest

revision = "0005"
down_revision = "0004"

_OF_ROUNDS = ("behaviour", "canary", "watch", "environment")


def upgrade() -> None:
    for column in _OF_ROUNDS:
        op.add_column("rounds", sa.Column(column, JSONB()))
    op.add_column("rounds", sa.Column("approved_by", sa.Text()))
    op.add_column("rounds", sa.Column("pairs_fate", sa.Text(), nullable=False, server_default="learned"))
    op.create_table(
        "pause",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        _time("at"),
        sa.PrimaryKeyConstraint("id", name="pk_pause"),
        sa.CheckConstraint("id = 1", name=op.f("ck_pause_single_row")),
    )
    op.create_table(
        "alarms",
        sa.Column("seq", sa.BigInteger(), sa.Identity(), nullable=False),
        _time("at"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("detail", JSONB(), nullable=False),
        sa.Column("once", sa.Text()),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _time("due_at"),
        sa.Column("delivered_to", sa.ARRAY(sa.Text()), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("delivered_at", sa.DateTime(timezone=True)),
        sa.Column("trouble", sa.Text()),
        sa.PrimaryKeyConstraint("seq", name="pk_alarms"),
        sa.UniqueConstraint("once", name="uq_alarms_once"),
    )
    _chain_audit()


def downgrade() -> None:
    op.drop_column("audit", "digest")
    op.drop_table("alarms")
    op.drop_table("pause")
    op.drop_column("rounds", "pairs_fate")
    op.drop_column("rounds", "approved_by")
    for column in reversed(_OF_ROUNDS):
        op.drop_column("rounds", column)


def _chain_audit() -> None:
    """Entries that are there already are chained in their order; none names a person, for then it could not be kept."""
    op.add_column("audit", sa.Column("digest", sa.Text()))
    connection, digest = op.get_bind(), GENESIS
    rows = connection.execute(sa.text("SELECT seq, at, who, action, subject, detail FROM audit ORDER BY seq")).all()
    for seq, at, who, action, subject, detail in rows:
        if "user" in detail:
            user = detail.pop("user")
            detail["person"] = pseudonym(user, detail.get("app")) if user else None
        digest = entry_digest(digest, at=at, who=who, action=action, subject=subject, detail=detail)
        connection.execute(
            sa.text("UPDATE audit SET digest = :digest, detail = :detail WHERE seq = :seq").bindparams(
                sa.bindparam("detail", type_=JSONB())
            ),
            {"digest": digest, "detail": detail, "seq": seq},
        )
    op.alter_column("audit", "digest", nullable=False)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
