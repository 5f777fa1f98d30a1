"""The first schema: tenants, keys, models, runtimes, events, usage."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table, and the one row that counts revisions."""
    platform = op.create_table(
        "platform",
        sa.Column("id", sa.Integer, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("standard_digest", sa.String(64)),
        sa.Column("standard_label", sa.String(200), nullable=False),
        sa.Column("standard_version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(
        platform, [{"id": 1, "revision": 0, "standard_label": "", "standard_version": 0}]
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(12)),
        sa.Column("name", sa.String(63)),
        sa.Column("plan", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("default_model", sa.String(63)),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(12)),
        sa.Column("tenant", sa.String(12), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"]),
    )
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant"])
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(64)),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("family", sa.String(63), nullable=False),
        sa.Column("classes", sa.JSON),
        sa.Column("input", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "models",
        sa.Column("tenant", sa.String(12)),
        sa.Column("name", sa.String(63)),
        sa.Column("current", sa.Integer, nullable=False),
        sa.Column("history", sa.JSON, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"]),
    )
    op.create_table(
        "versions",
        sa.Column("tenant", sa.String(12)),
        sa.Column("model", sa.String(63)),
        sa.Column("version", sa.Integer, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("classes", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "model", "version"),
        sa.ForeignKeyConstraint(["tenant", "model"], ["models.tenant", "models.name"]),
        sa.ForeignKeyConstraint(["digest"], ["artifacts.digest"]),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_table(
        "runtimes",
        sa.Column("tenant", sa.String(12)),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("status", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("tenant"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"]),
    )
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column("action", sa.String(63), nullable=False),
        sa.Column("tenant", sa.String(12)),
        sa.Column("resource", sa.String(200), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_events_tenant", "events", ["tenant"])
    op.create_table(
        "usage_records",
        sa.Column("id", sa.String(64)),
        sa.Column("tenant", sa.String(12), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("engine_ms", sa.Double, nullable=False),
        sa.Column("bytes_in", sa.BigInteger, nullable=False),
        sa.Column("cold_start", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_usage_records_tenant_at", "usage_records", ["tenant", "at"])
