"""Seals values for the database: keeps each tenant's data key, wrapped, in a row of its own."""

from __future__ import annotations

import hmac
import threading

import sqlalchemy as sa

from polyolo import sealedfile
from polyolo.control import db, secrets
from polyolo.control.secrets import KeyService, Place, SealedError


class Vault:
    """Seals and opens within the caller's transaction. Any thread may use it."""

    def __init__(self, service: KeyService) -> None:
        """Keep who holds the master key."""
        self._service = service
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str, bytes]] = {}  # by tenant: wrapped, unwrapped

    def seal(self, connection: sa.Connection, value: str, place: Place) -> str:
        """Return `value` sealed for `place`, the cell that it will be written into.

        connection: that writes; the tenant's data key is made with the first value.
        """
        return secrets.seal(
            self._data_key(connection, place.tenant, make=True), value.encode(), place
        )

    def unseal(self, connection: sa.Connection, sealed: str, place: Place) -> str:
        """Return the value in a cell; raise SealedError when it was tampered with."""
        data_key = self._data_key(connection, place.tenant, make=False)
        return secrets.unseal(data_key, sealed, place).decode()

    def fingerprint(self, connection: sa.Connection, value: str, purpose: str) -> str:
        """Return what a sealed value is found by: a digest under the platform's own data key.

        Equal values have equal ones; without the master key nobody can try values out. Raises
        SealedError while nothing of the platform is sealed, so that nothing can be found.
        connection: any; `prepare` makes the key.
        """
        data_key = self._data_key(connection, "", make=False)
        # Apart from the key's other use: a key for each purpose (RFC 5869's idea, in one step).
        own = hmac.digest(data_key, f"fingerprint {purpose}".encode(), "sha256")
        return hmac.digest(own, value.encode(), "sha256").hex()

    def artifact_key(self, connection: sa.Connection, tenant: str, *, make: bool = False) -> bytes:
        """Return a tenant's key for files, derived from its data key.

        Raises SealedError without one. make: it is made, on a connection that writes.
        """
        return sealedfile.artifact_key(self._data_key(connection, tenant, make=make), tenant)

    def prepare(self, connection: sa.Connection) -> None:
        """Make the platform's own data key if it is not there. connection: that writes."""
        self._data_key(connection, "", make=True)

    def forget(self, tenant: str) -> None:
        """Drop a tenant's data key from memory, after its row is deleted."""
        with self._lock:
            self._open.pop(tenant, None)

    def _data_key(self, connection: sa.Connection, tenant: str, *, make: bool) -> bytes:
        table = db.data_keys
        wrapped = connection.execute(
            sa.select(table.c.wrapped).where(table.c.tenant == tenant)
        ).scalar()
        if wrapped is None:
            if not make:
                raise SealedError("the key of this value is gone: it was erased")
            data_key = secrets.new_data_key()
            wrapped = self._service.wrap(data_key, _context(tenant))
            connection.execute(table.insert().values(tenant=tenant, wrapped=wrapped))
            return data_key  # not kept: the transaction may yet be rolled back
        with self._lock:
            known = self._open.get(tenant)
            if known is None or known[0] != wrapped:
                known = self._open[tenant] = (
                    wrapped,
                    self._service.unwrap(wrapped, _context(tenant)),
                )
            return known[1]


def masters(connection: sa.Connection) -> set[str]:
    """Return the ids of the master keys that wrap data keys."""
    wrapped = connection.execute(sa.select(db.data_keys.c.wrapped)).scalars()
    return {one.partition(".")[0] for one in wrapped}


def rewrap(connection: sa.Connection, old: KeyService, new: KeyService) -> int:
    """Wrap every data key by another master key, and return how many there are."""
    table = db.data_keys
    rows = connection.execute(sa.select(table)).all()
    for row in rows:
        data_key = old.unwrap(row.wrapped, _context(row.tenant))
        connection.execute(
            table.update()
            .where(table.c.tenant == row.tenant)
            .values(wrapped=new.wrap(data_key, _context(row.tenant)))
        )
    return len(rows)


def _context(tenant: str) -> bytes:
    return Place(table="data_keys", column="wrapped", row=tenant, tenant=tenant).context()
