"""Which tenants were changed since, by whichever control plane."""

from __future__ import annotations

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.service import touches
from polyolo.control.service.ledger import Ledger

_MOST = 1000  # changes looked at one by one; after more, everybody is


def last(ledger: Ledger) -> int:
    """Return the number of the last change's event; 0 before any."""
    with ledger.reading() as connection:
        newest = sa.select(sa.func.max(db.events.c.seq)).where(db.events.c.kind == "change")
        return connection.execute(newest).scalar() or 0


def since(ledger: Ledger, number: int, revision: int) -> tuple[int, set[str]]:
    """Return the last change's number, and whose were those after `number` or `revision`.

    A change of the platform as a whole is one of every tenant.
    """
    event = db.events.c
    with ledger.reading() as connection:
        touched = set(connection.execute(touches.after(revision)).scalars())
        rows = connection.execute(
            sa.select(event.seq, event.tenant)
            .where(event.kind == "change", event.seq > number)
            .order_by(event.seq)
            .limit(_MOST)
        ).all()
        found = {row.tenant for row in rows} | touched
        if None in found or len(rows) == _MOST:
            found |= set(connection.execute(sa.select(db.tenants.c.id)).scalars())
    return (rows[-1].seq if rows else number), found - {None}
