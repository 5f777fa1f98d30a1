"""Which tenants were changed after which revision: what a gateway must be told, and no more.

Written with every change, in its transaction; revisions are given out in the order in which
changes are committed, so whoever reads after revision N misses none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from polyolo.control import db

KEPT = 100_000
"""Revisions for which a tenant that is gone is remembered."""


def write(connection: sa.Connection, tenants: Iterable[str | None], revision: int) -> None:
    """Note that these tenants were changed by `revision`."""
    rows = [{"tenant": tenant, "revision": revision} for tenant in tenants]
    if not rows:
        return
    db.insert_new(connection, db.touched, rows)
    connection.execute(
        db.touched.update()
        .where(db.touched.c.tenant == sa.bindparam("whose"))
        .values(revision=sa.bindparam("now")),
        [{"whose": row["tenant"], "now": revision} for row in rows],
    )


def after(revision: int) -> sa.Select[Any]:
    """Return the query for the tenants that were changed after `revision`."""
    return sa.select(db.touched.c.tenant).where(db.touched.c.revision > revision)


def forget(connection: sa.Connection) -> None:
    """Drop what is known of tenants that are long gone; who knows less than that starts anew."""
    row = db.platform.c
    now = connection.execute(sa.select(row.revision)).scalar_one()
    oldest = now - KEPT
    gone = db.touched.c.tenant.not_in(sa.select(db.tenants.c.id))
    dropped = connection.execute(
        db.touched.delete().where(db.touched.c.revision <= oldest, gone)
    ).rowcount
    if dropped:
        connection.execute(
            db.platform.update().where(row.touched_since < oldest).values(touched_since=oldest)
        )
