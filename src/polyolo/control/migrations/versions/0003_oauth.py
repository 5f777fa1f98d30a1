"""OAuth clients, their revoked tokens, signing keys; what API keys have learned since."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables, and add to API keys where, until when and by whom they are used."""
    op.create_table(
        "oauth_clients",
        sa.Column("id", sa.String(15)),
        sa.Column("tenant", sa.String(12), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
        sa.Column("last_used_at", sa.Double),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"]),
    )
    op.create_index("ix_oauth_clients_tenant", "oauth_clients", ["tenant"])
    op.create_table(
        "revoked_tokens",
        sa.Column("id", sa.String(32)),
        sa.Column("client", sa.String(15), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(43)),
        sa.Column("public", sa.JSON, nullable=False),
        sa.Column("private", sa.Text, nullable=False),
        sa.Column("signs_from", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.add_column("api_keys", sa.Column("last_used_at", sa.Double))
    op.add_column("api_keys", sa.Column("sources", sa.JSON))
    op.add_column("api_keys", sa.Column("replaced_by", sa.String(12)))
