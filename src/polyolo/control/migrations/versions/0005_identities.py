"""Identities of users at an external provider; a second live secret of OAuth clients."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table, and add to OAuth clients the secret before the present one."""
    op.create_table(
        "identities",
        sa.Column("id", sa.String(12)),
        sa.Column("user", sa.String(12), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("issuer", sa.String(500), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("last_used_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
        sa.ForeignKeyConstraint(["user"], ["users.id"]),
    )
    op.create_index("ix_identities_user", "identities", ["user"])
    op.add_column("oauth_clients", sa.Column("previous_digest", sa.String(64)))
    op.add_column("oauth_clients", sa.Column("previous_until", sa.Double))
