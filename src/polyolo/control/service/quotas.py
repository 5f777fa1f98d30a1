"""The pictures of each tenant's month: counted with the usage records, told to gateways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from polyolo import months
from polyolo.control import db
from polyolo.control.service import limits
from polyolo.control.service.ledger import Transaction
from polyolo.resources import UsageTaken
from polyolo.types import Plan, UsageRecord


def count(
    transaction: Transaction,
    fresh: Iterable[UsageRecord],
    whose: set[str],
    plans: Sequence[Plan],
) -> UsageTaken:
    """Add new records to their months; return how much the tenants have used of this one.

    Where that reaches a tenant's quota, gateways are told at once: those that did not send these
    records have to refuse from then on too.
    """
    month = months.label(transaction.now)
    more: Counter[tuple[str, str]] = Counter()
    for record in fresh:
        if record.images:
            more[record.tenant, months.label(record.at)] += record.images
    _add(transaction.connection, more)
    used = _used(transaction.connection, whose, month)
    grown = {tenant for tenant in whose if (tenant, month) in more}
    for row in transaction.connection.execute(
        sa.select(db.tenants).where(db.tenants.c.id.in_(grown))
    ):
        limit = limits.effective(row, plans).images_per_month
        if limit and used[row.id] - more[row.id, month] < limit <= used[row.id]:
            transaction.touch(row.id)
    return UsageTaken(month=month, images=used)


def _add(connection: sa.Connection, more: Counter[tuple[str, str]]) -> None:
    if not more:
        return
    table = db.usage_months
    db.insert_new(
        connection,
        table,
        [{"tenant": tenant, "month": month, "images": 0} for tenant, month in more],
    )
    connection.execute(
        table.update()
        .where(table.c.tenant == sa.bindparam("whose"), table.c.month == sa.bindparam("when"))
        .values(images=table.c.images + sa.bindparam("number")),
        [
            {"whose": tenant, "when": month, "number": number}
            for (tenant, month), number in more.items()
        ],
    )


def _used(connection: sa.Connection, whose: set[str], month: str) -> dict[str, int]:
    table = db.usage_months.c
    rows = connection.execute(
        sa.select(table.tenant, table.images).where(table.month == month, table.tenant.in_(whose))
    )
    return dict.fromkeys(whose, 0) | {row.tenant: row.images for row in rows}
