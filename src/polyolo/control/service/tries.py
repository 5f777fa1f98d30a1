"""Tries at a secret, counted in the database: all control planes slow a guesser down together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.control.throttle import Count, Pace, counted, forgiven


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What tries are counted by. what: whom or where from; kept as a fingerprint only."""

    pace: Pace
    what: tuple[str, ...]


def begin(ledger: Ledger, vault: Vault, keys: Sequence[Key]) -> None:
    """Count a try by each key, before the secret is looked at; by all of them or by none.

    Raises RateLimitedError, with the seconds to wait, when it is too early for one of them.
    """
    with ledger.changing() as transaction:
        connection, now = transaction.connection, transaction.now
        connection.execute(db.tries.delete().where(db.tries.c.forget_at <= now))
        vault.prepare(connection)
        for key in keys:
            name, count = _read(connection, vault, key)
            _write(connection, name, key.pace, counted(key.pace, count, now))


def forgive(ledger: Ledger, vault: Vault, one: Sequence[Key], every: Sequence[Key]) -> None:
    """Take a try back that was a good one: of the keys `one` only that, of `every` all tries."""
    with ledger.changing() as transaction:
        connection, now = transaction.connection, transaction.now
        for key in one:
            name, count = _read(connection, vault, key)
            _write(connection, name, key.pace, forgiven(count, now))
        for key in every:
            name, _ = _read(connection, vault, key)
            connection.execute(db.tries.delete().where(db.tries.c.key == name))


def _read(connection: sa.Connection, vault: Vault, key: Key) -> tuple[str, Count]:
    name = vault.fingerprint(connection, "\0".join(key.what), "tries")
    row = connection.execute(sa.select(db.tries).where(db.tries.c.key == name)).one_or_none()
    return name, Count() if row is None else Count(tries=row.tries, last=row.last, until=row.until)


def _write(connection: sa.Connection, name: str, pace: Pace, count: Count) -> None:
    values = {"tries": count.tries, "last": count.last, "until": count.until}
    values["forget_at"] = count.last + 2 * pace.longest_s
    changed = connection.execute(db.tries.update().where(db.tries.c.key == name).values(**values))
    if not changed.rowcount:
        connection.execute(db.tries.insert().values(key=name, **values))
