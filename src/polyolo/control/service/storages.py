"""Storages of tenants: granted by the operator, their credentials sealed by the tenant's key."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import sqlalchemy as sa

from polyolo.control import db, storage
from polyolo.control.secrets import Place
from polyolo.control.service.ledger import Ledger, actor
from polyolo.control.service.vault import Vault
from polyolo.control.storage import OwnStorage
from polyolo.errors import ConflictError, NotFoundError
from polyolo.types import Principal


class Storages:
    """Reads files of tenants' storages. Any thread may use it."""

    def __init__(self, ledger: Ledger, vault: Vault) -> None:
        """Keep its parts."""
        self._ledger = ledger
        self._vault = vault

    def grant(self, who: Principal, tenant: str, granted: OwnStorage | None) -> None:
        """Let the platform read a tenant's storage; None: no longer.

        Raises NotFoundError, and ConflictError while there are versions whose files are in it.
        """
        with self._ledger.changing() as transaction:
            connection = transaction.connection
            used = sa.select(db.artifacts.c.digest).where(
                db.artifacts.c.tenant == tenant, db.artifacts.c.uri != ""
            )
            if granted is None and connection.execute(used).first() is not None:
                raise ConflictError("there are versions whose files are in it; delete them first")
            sealed = None
            if granted is not None:
                text = msgspec.json.encode(granted).decode()
                sealed = self._vault.seal(connection, text, _place(tenant))
            changed = connection.execute(
                db.tenants.update()
                .where(db.tenants.c.id == tenant, db.tenants.c.state != "deleting")
                .values(storage=sealed)
            )
            if not changed.rowcount:
                raise NotFoundError("there is no such tenant")
            transaction.new_generation(tenant)
            transaction.note(
                actor(who),
                "tenant.storage",
                tenant=tenant,
                resource="storage",
                detail=granted.uri if granted else "none",
            )

    def find(self, tenant: str) -> OwnStorage:
        """Return a tenant's storage. Raises NotFoundError."""
        with self._ledger.reading() as connection:
            row = sa.select(db.tenants.c.storage).where(db.tenants.c.id == tenant)
            sealed = connection.execute(row).scalar()
            if sealed is None:
                raise NotFoundError("this tenant has no storage of its own; ask the operator")
            return self._read(connection, sealed, tenant)

    def mounted(self, connection: sa.Connection, tenant: str) -> str:
        """Return the uri of the storage that a tenant's runtime mounts; empty for none."""
        row = sa.select(db.tenants.c.storage).where(db.tenants.c.id == tenant)
        sealed = connection.execute(row).scalar()
        if sealed is None:
            return ""
        found = self._read(connection, sealed, tenant)
        return found.uri if found.mounted else ""

    def opened(self, tenant: str, path: str) -> Iterator[bytes]:
        """Yield a file of a tenant's storage. Raises what `storage.opened` does, NotFoundError."""
        return storage.opened(self.find(tenant), path)

    def file(self, tenant: str, digest: str) -> Iterator[bytes]:
        """Yield what now lies where a version's file is kept by its tenant.

        Raises FileNotFoundError when that is nowhere.
        """
        with self._ledger.reading() as connection:
            path = connection.execute(
                sa.select(db.artifacts.c.uri).where(
                    db.artifacts.c.tenant == tenant, db.artifacts.c.digest == digest
                )
            ).scalar()
        if not path:
            raise FileNotFoundError(f"no storage has {digest}")
        return self.opened(tenant, path)

    def _read(self, connection: sa.Connection, sealed: str, tenant: str) -> OwnStorage:
        text = self._vault.unseal(connection, sealed, _place(tenant))
        return msgspec.json.decode(text, type=OwnStorage)


def _place(tenant: str) -> Place:
    return Place(table="tenants", column="storage", row=tenant, tenant=tenant)
