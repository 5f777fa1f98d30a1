"""Erasures of tenants, an audit log whose words can go, and tries counted for all processes.

The audit log is chained anew, in the format of this release: `audit.opened` does it with a new
key, as for the events of a release that kept no chain.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create the tables, add the columns, and have the audit log chained anew."""
    op.create_table(
        "erasures",
        sa.Column("id", sa.String(46)),
        sa.Column("tenant", sa.String(12), nullable=False),
        sa.Column("requested_at", sa.Double, nullable=False),
        sa.Column("requested_by", sa.String(100), nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("certificate", sa.JSON(none_as_null=True)),
        sa.Column("kept_until", sa.Double),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant"),
    )
    op.create_table(
        "tries",
        sa.Column("key", sa.String(64)),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("last", sa.Double, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
        sa.Column("forget_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_tries_forget_at", "tries", ["forget_at"])
    op.add_column("replays", sa.Column("tenant", sa.String(12)))
    op.create_index("ix_replays_tenant", "replays", ["tenant"])
    op.add_column("events", sa.Column("salt", sa.String(32)))
    op.add_column("events", sa.Column("redacted", sa.String(64)))
    op.execute("DELETE FROM audit_marks")
    op.execute("DELETE FROM audit_keys")
