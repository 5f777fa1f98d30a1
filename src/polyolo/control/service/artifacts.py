"""What is known of the files in the artifact store, and whether anybody still needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.intake import Facts
from polyolo.control.service.ledger import Ledger, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that was judged fit, with what was found in it."""

    digest: str
    size: int
    facts: Facts
    given: bool = False
    """Whether its owner gave class names beside it: `facts.classes` is not the file's alone."""


def known(ledger: Ledger, digest: str) -> Facts | None:
    """Return what was found in a file by itself; None for one that has not been judged so."""
    with ledger.reading() as connection:
        row = connection.execute(
            sa.select(db.artifacts).where(db.artifacts.c.digest == digest)
        ).one_or_none()
    if row is None or row.classes is None:
        return None
    return Facts(family=row.family, classes=tuple(row.classes), input=tuple(row.input))


def remember(transaction: Transaction, artifact: Artifact) -> None:
    """Keep what was found, within the change that needs the file."""
    classes = None if artifact.given else list(artifact.facts.classes)
    row: dict[str, Any] = {
        "digest": artifact.digest,
        "size": artifact.size,
        "family": artifact.facts.family,
        "classes": classes,
        "input": list(artifact.facts.input),
        "created_at": transaction.now,
    }
    db.insert_new(transaction.connection, db.artifacts, [row])
    if classes is not None:
        transaction.connection.execute(
            db.artifacts.update()
            .where(db.artifacts.c.digest == artifact.digest, db.artifacts.c.classes.is_(None))
            .values(classes=classes)
        )


def forget(ledger: Ledger, digest: str) -> bool:
    """Delete the row of a file that nobody needs; say whether the file may go."""
    with ledger.changing() as transaction:
        needed = sa.union_all(
            sa.select(db.versions.c.digest).where(db.versions.c.digest == digest),
            sa.select(db.platform.c.standard_digest).where(db.platform.c.standard_digest == digest),
        )
        if transaction.connection.execute(needed).first() is not None:
            return False
        transaction.connection.execute(db.artifacts.delete().where(db.artifacts.c.digest == digest))
    return True


def every(ledger: Ledger) -> set[str]:
    """Return the digests of all files that have a row."""
    with ledger.reading() as connection:
        return set(connection.execute(sa.select(db.artifacts.c.digest)).scalars())


def serves(ledger: Ledger, tenant: str, digest: str) -> bool:
    """Say whether a tenant's runtime serves a file: a version of its own, or the standard model."""
    with ledger.reading() as connection:
        named = sa.union_all(
            sa.select(db.versions.c.digest).where(
                db.versions.c.tenant == tenant, db.versions.c.digest == digest
            ),
            sa.select(db.platform.c.standard_digest).where(db.platform.c.standard_digest == digest),
        )
        return connection.execute(named).first() is not None
