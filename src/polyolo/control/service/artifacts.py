"""What is known of the files in the artifact store, and whether anybody still needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.artifacts import PLATFORM
from polyolo.control.intake import Facts
from polyolo.control.secrets import SealedError
from polyolo.control.service.ledger import Ledger, Transaction
from polyolo.control.service.vault import Vault
from polyolo.errors import NotFoundError


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A tenant's file that was judged fit, with what was found in it."""

    tenant: str
    digest: str
    size: int
    facts: Facts
    uri: str = ""
    """Where the tenant itself keeps it; empty: it is in the platform's store."""


def key_of(ledger: Ledger, vault: Vault, tenant: str) -> bytes:
    """Return a tenant's key for files, made with the tenant's first need of one.

    Raises NotFoundError for a tenant that is no more: its key must not come back.
    """
    try:
        with ledger.reading() as connection:
            return vault.artifact_key(connection, tenant)
    except SealedError:
        with ledger.changing() as transaction:
            connection = transaction.connection
            row = sa.select(db.tenants.c.state).where(db.tenants.c.id == tenant)
            if connection.execute(row).scalar() in (None, "deleting"):
                raise NotFoundError("there is no such tenant") from None
            return vault.artifact_key(connection, tenant, make=True)


def known(ledger: Ledger, digest: str) -> Facts | None:
    """Return what was found in a file of the platform's; None for one not judged yet."""
    with ledger.reading() as connection:
        row = connection.execute(sa.select(db.artifacts).where(_is(PLATFORM, digest))).one_or_none()
    if row is None or row.classes is None:
        return None
    return Facts(
        family=row.family,
        classes=tuple(row.classes),
        input=tuple(row.input),
        licence=row.licence,
        producer=row.producer,
        opset=row.opset,
    )


def remember(transaction: Transaction, artifact: Artifact) -> None:
    """Keep what was found, within the change that needs the file."""
    facts = artifact.facts
    row: dict[str, Any] = {
        "tenant": artifact.tenant,
        "digest": artifact.digest,
        "size": artifact.size,
        "family": facts.family,
        "classes": list(facts.classes),
        "input": list(facts.input),
        "licence": facts.licence,
        "producer": facts.producer,
        "opset": facts.opset,
        "uri": artifact.uri,
        "created_at": transaction.now,
    }
    db.insert_new(transaction.connection, db.artifacts, [row])
    # What is stored here stays so; of what a tenant keeps itself the last word counts.
    elsewhere = _is(artifact.tenant, artifact.digest) & (db.artifacts.c.uri != "")
    transaction.connection.execute(db.artifacts.update().where(elsewhere).values(row))


def unused(ledger: Ledger, tenant: str) -> list[str]:
    """Return the digests of a tenant's files that no version names."""
    with ledger.reading() as connection:
        mine = sa.select(db.artifacts.c.digest).where(db.artifacts.c.tenant == tenant, _unused())
        return list(connection.execute(mine).scalars())


def forget(ledger: Ledger, tenant: str, digest: str) -> bool:
    """Delete the row of a file unless a version names it; say whether the file may go."""
    with ledger.changing() as transaction:
        where = _is(tenant, digest) & _unused()
        deleted = transaction.connection.execute(db.artifacts.delete().where(where))
        return deleted.rowcount == 1


def every(ledger: Ledger, tenant: str | None = None) -> set[tuple[str, str]]:
    """Return the tenants and digests of all files that have a row, golden pictures included.

    tenant: only this one's.
    """
    tables = (db.artifacts.c, db.golden.c)
    files = [sa.select(table.tenant, table.digest) for table in tables]
    if tenant is not None:
        files = [
            one.where(table.tenant == tenant) for one, table in zip(files, tables, strict=True)
        ]
    with ledger.reading() as connection:
        rows = connection.execute(sa.union(*files))
        return {(row.tenant, row.digest) for row in rows}


def _is(tenant: str, digest: str) -> sa.ColumnElement[bool]:
    return (db.artifacts.c.tenant == tenant) & (db.artifacts.c.digest == digest)


def _unused() -> sa.ColumnElement[bool]:
    named = sa.select(db.versions.c.digest).where(
        db.versions.c.tenant == db.artifacts.c.tenant, db.versions.c.digest == db.artifacts.c.digest
    )
    standard = sa.select(db.platform.c.standard_digest).where(
        db.platform.c.standard_digest == db.artifacts.c.digest, db.artifacts.c.tenant == PLATFORM
    )
    return ~sa.exists(named) & ~sa.exists(standard)
