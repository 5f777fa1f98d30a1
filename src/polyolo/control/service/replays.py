"""Answers that are kept for a day, for requests that come twice."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from polyolo.control import db
from polyolo.control.secrets import Place
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault

KEPT_S = 24 * 3600.0
"""Seconds that an answer is kept: longer than any client tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What became of the first request. request: "" while it has not been answered."""

    request: str
    status: int
    answer: str
    tenant: str | None = None
    """Whom the answer is about."""


def claim(ledger: Ledger, identifier: str) -> Kept | None:
    """Return what there is of the request with this id, or None: then it is the caller's to do."""
    table = db.replays
    with ledger.changing() as transaction:
        connection, now = transaction.connection, transaction.now
        connection.execute(table.delete().where(table.c.created_at <= now - KEPT_S))
        row = connection.execute(sa.select(table).where(table.c.id == identifier)).one_or_none()
        if row is not None:
            return Kept(request=row.request, status=row.status, answer=row.answer.decode())
        connection.execute(
            table.insert().values(id=identifier, created_at=now, request="", status=0, answer=b"")
        )
    return None


def keep(ledger: Ledger, identifier: str, kept: Kept) -> None:
    """Keep the answer of a request that was claimed; not one about a tenant that is erased."""
    table, erased = db.replays, db.erasures.c.tenant
    values = {"request": kept.request, "status": kept.status, "answer": kept.answer.encode()}
    with ledger.changing() as transaction:
        connection, own = transaction.connection, table.c.id == identifier
        if connection.execute(sa.select(erased).where(erased == kept.tenant)).first() is not None:
            connection.execute(table.delete().where(own))
        else:
            connection.execute(table.update().where(own).values(tenant=kept.tenant, **values))


def release(ledger: Ledger, identifier: str) -> None:
    """Give a claim back: nothing was done, so the request may come again."""
    with ledger.changing() as transaction:
        transaction.connection.execute(
            db.replays.delete().where(db.replays.c.id == identifier, db.replays.c.status == 0)
        )


def seal(ledger: Ledger, vault: Vault, identifier: str, answer: str) -> str:
    """Return an answer sealed by the platform's key."""
    with ledger.changing() as transaction:
        return vault.seal(transaction.connection, answer, place(identifier))


def unseal(ledger: Ledger, vault: Vault, identifier: str, sealed: str) -> str:
    """Return an answer that `seal` sealed."""
    with ledger.reading() as connection:
        return vault.unseal(connection, sealed, place(identifier))


def place(identifier: str) -> Place:
    """Return what a kept answer belongs to."""
    return Place(table="replays", column="answer", row=identifier, tenant="")
