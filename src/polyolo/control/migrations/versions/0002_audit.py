"""The audit log's chain, sealed secrets, and who of several control planes reconciles."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the chain to the events; those that are there are chained at the next start."""
    with op.batch_alter_table("events") as events:
        events.add_column(sa.Column("kind", sa.String(8), nullable=False, server_default="change"))
        events.add_column(sa.Column("source", sa.String(64), nullable=False, server_default=""))
        events.add_column(sa.Column("status", sa.Integer, nullable=False, server_default="0"))
        events.add_column(sa.Column("number", sa.BigInteger))
        for name in ("digest", "chain", "whole"):
            events.add_column(sa.Column(name, sa.String(64)))
        events.add_column(sa.Column("signature", sa.String(128)))
        events.create_index("ix_events_kind_seq", ["kind", "seq"])
    op.create_table(
        "audit_marks",
        sa.Column("chain", sa.String(12)),
        sa.Column("kind", sa.String(8)),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("chain", "kind"),
    )
    op.create_table(
        "audit_keys",
        sa.Column("id", sa.Integer, autoincrement=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "data_keys",
        sa.Column("tenant", sa.String(12)),
        sa.Column("wrapped", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("tenant"),
    )
    lease = op.create_table(
        "lease",
        sa.Column("id", sa.Integer, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(lease, [{"id": 1, "epoch": 0, "holder": "", "beat": 0}])
