"""Plans: a tenant's own limits, the pictures of each month, and who was changed when."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add columns and tables; months are summed up from the records, to the second in UTC."""
    with op.batch_alter_table("tenants") as table:
        table.add_column(sa.Column("limits", sa.JSON(none_as_null=True)))
    with op.batch_alter_table("runtimes") as table:
        table.add_column(sa.Column("used_at", sa.Double, nullable=False, server_default="0"))
        table.add_column(sa.Column("load", sa.JSON(none_as_null=True)))
        table.add_column(sa.Column("windows", sa.JSON(none_as_null=True)))
    with op.batch_alter_table("platform") as table:
        table.add_column(
            sa.Column("touched_since", sa.BigInteger, nullable=False, server_default="0")
        )
    op.execute("UPDATE platform SET touched_since = revision")
    op.add_column(
        "usage_records", sa.Column("requests", sa.Integer, nullable=False, server_default="1")
    )
    op.create_table(
        "touched",
        sa.Column("tenant", sa.String(12)),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant"),
    )
    op.create_index("ix_touched_revision", "touched", ["revision"])
    op.create_table(
        "usage_months",
        sa.Column("tenant", sa.String(12)),
        sa.Column("month", sa.String(7)),
        sa.Column("images", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "month"),
    )
    month = (
        "strftime('%Y-%m', at, 'unixepoch')"
        if op.get_bind().dialect.name == "sqlite"
        else "to_char(to_timestamp(at) AT TIME ZONE 'UTC', 'YYYY-MM')"
    )
    op.execute(
        "INSERT INTO usage_months (tenant, month, images)"  # noqa: S608  # both are ours
        f" SELECT tenant, {month}, SUM(images) FROM usage_records WHERE images > 0 GROUP BY 1, 2"
    )
