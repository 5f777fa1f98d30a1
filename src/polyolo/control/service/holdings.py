"""What the database holds of one tenant: which rows of which tables go when it goes.

A new table with a column `tenant`, `user` or `client` is among them by itself; one that is to
outlive its tenant is named here, and so is one that is nobody's.
"""

from __future__ import annotations

import sqlalchemy as sa

from polyolo.control import db

OUTLIVING = frozenset({"erasures", "events", "usage_records"})
"""Tables whose rows stay when a tenant is deleted: what happened, and what is owed. An erasure
takes from them what is personal; see service.erasures."""
PLATFORM = frozenset({"audit_keys", "audit_marks", "lease", "platform", "signing_keys", "tries"})
"""Tables that hold nothing of any tenant but, perhaps, its id."""


def of(table: sa.Table, tenant: str) -> sa.ColumnElement[bool] | None:
    """Return which rows of a table are a tenant's; None for a table that is nobody's."""
    if table is db.tenants:
        return table.c.id == tenant
    if "tenant" in table.c:
        return table.c.tenant == tenant
    for column, owners in (("user", db.users), ("client", db.oauth_clients)):
        if column in table.c:
            return table.c[column].in_(sa.select(owners.c.id).where(owners.c.tenant == tenant))
    return None


def remove(connection: sa.Connection, tenant: str) -> dict[str, int]:
    """Delete all rows of a tenant that do not outlive it; return how many, by table."""
    tables = [table for table in reversed(db.metadata.sorted_tables) if table.name not in OUTLIVING]
    # First those that are found through another table's rows, while these are there.
    tables.sort(key=lambda table: table is db.tenants or "tenant" in table.c)
    removed = {}
    for table in tables:
        own = of(table, tenant)
        if own is not None:
            removed[table.name] = connection.execute(table.delete().where(own)).rowcount
    return {name: removed[name] for name in sorted(removed) if removed[name]}
