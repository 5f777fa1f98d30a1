"""People: users, their sessions, invitations; and answers kept for requests that come twice."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "users",
        sa.Column("id", sa.String(12)),
        sa.Column("tenant", sa.String(12), nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("email_digest", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password", sa.String(200), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("email_digest"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"]),
    )
    op.create_index("ix_users_tenant", "users", ["tenant"])
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64)),
        sa.Column("user", sa.String(12), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("digest"),
        sa.ForeignKeyConstraint(["user"], ["users.id"]),
    )
    op.create_index("ix_sessions_user", "sessions", ["user"])
    op.create_table(
        "invitations",
        sa.Column("id", sa.String(12)),
        sa.Column("tenant", sa.String(12)),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"]),
    )
    op.create_index("ix_invitations_tenant", "invitations", ["tenant"])
    op.create_table(
        "replays",
        sa.Column("id", sa.String(64)),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_replays_created_at", "replays", ["created_at"])
