"""Model files by tenant, uploads that can be resumed, tenants' own storages."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Bring each part of the schema up."""
    _files()
    _trials()


def _files() -> None:
    """Give every tenant its own row of a file that several had; make the new tables."""
    old = sa.table("artifacts", *map(sa.column, ("digest", "size", "family")))
    typed = sa.table(
        "artifacts",
        *(sa.column(name) for name in ("digest", "size", "family", "created_at")),
        sa.column("classes", sa.JSON(none_as_null=True)),
        sa.column("input", sa.JSON),
    )
    used = sa.text(
        "SELECT DISTINCT tenant, digest FROM versions"
        " UNION SELECT '', standard_digest FROM platform WHERE standard_digest IS NOT NULL"
    )
    connection = op.get_bind()
    found = connection.execute(sa.select(typed)).mappings()
    known = {row["digest"]: dict(row) for row in found}
    rows = [{"tenant": tenant, **known[digest]} for tenant, digest in connection.execute(used)]
    with op.batch_alter_table("versions") as versions:
        versions.drop_constraint("fk_versions_digest", type_="foreignkey")
    op.drop_table(old.name)
    artifacts = op.create_table(
        "artifacts",
        sa.Column("tenant", sa.String(12)),
        sa.Column("digest", sa.String(64)),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("family", sa.String(63), nullable=False),
        sa.Column("classes", sa.JSON(none_as_null=True)),
        sa.Column("input", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("licence", sa.String(200), nullable=False, server_default=""),
        sa.Column("producer", sa.String(200), nullable=False, server_default=""),
        sa.Column("opset", sa.Integer, nullable=False, server_default="0"),
        sa.Column("uri", sa.Text, nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("tenant", "digest"),
    )
    op.bulk_insert(artifacts, rows)
    with op.batch_alter_table("versions") as versions:
        versions.create_foreign_key(
            "fk_versions_tenant_digest", "artifacts", ["tenant", "digest"], ["tenant", "digest"]
        )
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(12)),
        sa.Column("tenant", sa.String(12), nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("classes", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("touched_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"]),
    )
    op.create_index("ix_uploads_tenant", "uploads", ["tenant"])
    op.add_column("tenants", sa.Column("storage", sa.Text))


def _trials() -> None:
    """Add what rollouts, golden pictures and releases need."""
    for column in (
        sa.Column("pushed", sa.Integer, nullable=False, server_default="1"),
        sa.Column("rolled_back", sa.Integer),
        sa.Column("rollout", sa.JSON),
    ):
        op.add_column("models", column)
    op.execute(
        "UPDATE models SET pushed = COALESCE((SELECT MAX(version) FROM versions"
        " WHERE versions.tenant = models.tenant AND versions.model = models.name), 1)"
    )
    op.add_column("versions", sa.Column("taken_out", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "golden",
        sa.Column("tenant", sa.String(12)),
        sa.Column("model", sa.String(63)),
        sa.Column("number", sa.Integer, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("expected", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "model", "number"),
        sa.ForeignKeyConstraint(["tenant", "model"], ["models.tenant", "models.name"]),
    )
    op.add_column("tenants", sa.Column("release", sa.String(63)))
    for name in ("release", "next_release"):
        op.add_column("platform", sa.Column(name, sa.String(63), nullable=False, server_default=""))
    op.add_column(
        "platform", sa.Column("next_share", sa.Double, nullable=False, server_default="0")
    )
