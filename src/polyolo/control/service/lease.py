"""The row that says which control plane reconciles, and the fence that its writes pass."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.service.ledger import Ledger


class DeposedError(Exception):
    """Another control plane reconciles now; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The row as it was read."""

    epoch: int
    holder: str
    beat: int


def read(ledger: Ledger) -> Lease:
    """Return who holds the lease, and how far it has counted."""
    with ledger.reading() as connection:
        row = connection.execute(sa.select(db.lease)).one()
    return Lease(epoch=row.epoch, holder=row.holder, beat=row.beat)


def take(ledger: Ledger, seen: Lease, holder: str) -> Lease | None:
    """Become the holder, unless the row is no longer as it was `seen`; None then."""
    fresh = Lease(epoch=seen.epoch + 1, holder=holder, beat=0)
    return fresh if _replace(ledger, seen, fresh) else None


def beat(ledger: Ledger, held: Lease) -> Lease | None:
    """Show that the holder is alive; None when it is no longer the holder."""
    fresh = Lease(epoch=held.epoch, holder=held.holder, beat=held.beat + 1)
    return fresh if _replace(ledger, held, fresh) else None


def give_up(ledger: Ledger, held: Lease) -> None:
    """Let somebody else take the lease at once."""
    _replace(ledger, held, Lease(epoch=held.epoch, holder="", beat=held.beat))


def fence(connection: sa.Connection, epoch: int) -> None:
    """Raise DeposedError unless `epoch` is the present one, within a transaction that writes."""
    if connection.execute(sa.select(db.lease.c.epoch)).scalar_one() != epoch:
        raise DeposedError(f"another control plane has reconciled since epoch {epoch}")


def _replace(ledger: Ledger, seen: Lease, fresh: Lease) -> bool:
    row = db.lease.c
    same = sa.and_(row.epoch == seen.epoch, row.holder == seen.holder, row.beat == seen.beat)
    with ledger.changing() as transaction:
        changed = transaction.connection.execute(
            db.lease.update()
            .where(same)
            .values(epoch=fresh.epoch, holder=fresh.holder, beat=fresh.beat)
        )
        return changed.rowcount == 1
