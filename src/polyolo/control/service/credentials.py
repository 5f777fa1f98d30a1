"""What API keys and OAuth clients have in common: scopes, how many, which live, when last used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.service.ledger import Transaction, actor
from polyolo.errors import ConflictError, ForbiddenError, InvalidValueError, NotFoundError
from polyolo.types import Principal

MAX_LIVE = 100
"""Live ones of a kind and tenant: every gateway holds all of them in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One of the two, where it is kept and what it is called."""

    table: sa.Table
    noun: str
    event: str


KEYS = Kind(table=db.api_keys, noun="key", event="key")
CLIENTS = Kind(table=db.oauth_clients, noun="client", event="oauth-client")


def granted(who: Principal, scopes: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the scopes of a credential that `who` makes; None asks for all that they have.

    Raises InvalidValueError for one that there is not, ForbiddenError for one that they lack.
    """
    # Some scopes are for people only: a user has them, and no key gets them.
    own = tuple(s for s in names.SCOPES if who.kind == "operator" or s in who.scopes)
    chosen = own if scopes is None else tuple(dict.fromkeys(scopes))
    for scope in chosen:
        if scope not in names.SCOPES:
            raise InvalidValueError(f"scopes: {scope!r} is not one of {', '.join(names.SCOPES)}")
        if scope not in own:
            raise ForbiddenError(f"you lack the scope {scope} yourself, so you cannot give it")
    return chosen


def rotatable(
    connection: sa.Connection, kind: Kind, who: Principal, tenant: str, identifier: str
) -> Any:
    """Return the row of a live one that `who` may be told the new secret of.

    Raises NotFoundError, and ForbiddenError for one that may do more than the caller.
    """
    row = live(connection, kind, tenant, identifier)
    beyond = ", ".join(sorted(set(row.scopes) - set(who.scopes)))
    if who.kind != "operator" and beyond:
        raise ForbiddenError(f"that {kind.noun} has scopes that you lack: {beyond}")
    return row


def live(connection: sa.Connection, kind: Kind, tenant: str, identifier: str) -> Any:
    """Return the row of a live one of the tenant. Raises NotFoundError."""
    row = connection.execute(
        sa.select(kind.table).where(kind.table.c.id == identifier, *_living(kind, tenant))
    ).one_or_none()
    if row is None:
        noun = kind.noun
        raise NotFoundError(f"there is no such live {noun}; list the {noun}s to see their ids")
    return row


def make_room(connection: sa.Connection, kind: Kind, tenant: str) -> None:
    """Raise ConflictError when the tenant has as many live ones as it may."""
    count = sa.select(sa.func.count()).select_from(kind.table).where(*_living(kind, tenant))
    if (there := connection.execute(count).scalar_one()) >= MAX_LIVE:
        raise ConflictError(f"there are {there} live {kind.noun}s; revoke one that is not used")


def every(connection: sa.Connection, kind: Kind, tenant: str) -> Iterable[Any]:
    """Return the rows of a tenant, oldest first, revoked ones included."""
    table = kind.table
    return connection.execute(
        sa.select(table).where(table.c.tenant == tenant).order_by(table.c.created_at, table.c.id)
    )


def revoke(
    transaction: Transaction, kind: Kind, who: Principal, tenant: str, identifier: str
) -> None:
    """Have one stop working."""
    table = kind.table
    transaction.connection.execute(
        table.update().where(table.c.id == identifier).values(revoked_at=transaction.now)
    )
    note(transaction, kind, who, tenant, identifier, "revoke")


def note(
    transaction: Transaction,
    kind: Kind,
    who: Principal,
    tenant: str,
    identifier: str,
    what: str,
    detail: str = "",
) -> None:
    """Write the event of a change of one. what: create, rotate or revoke."""
    event, resource = f"{kind.event}.{what}", f"{kind.event}s/{identifier}"
    transaction.note(actor(who), event, tenant=tenant, resource=resource, detail=detail)


def used(transaction: Transaction) -> None:
    """Learn from the entries of this transaction when they were last used, to a minute.

    No event and no revision, and a write a credential and minute at most.
    """
    last: dict[str, float] = {}
    for entry in transaction.entries:
        minute = entry.at // 60 * 60
        last[entry.actor] = max(minute, last.get(entry.actor, 0.0))
    for who, minute in last.items():
        kind, _, identifier = who.partition(":")
        table = {"key": db.api_keys, "token": db.oauth_clients}.get(kind)
        if table is not None:
            known = table.c.last_used_at
            transaction.connection.execute(
                table.update()
                .where(table.c.id == identifier, sa.or_(known.is_(None), known < minute))
                .values(last_used_at=minute)
            )


def _living(kind: Kind, tenant: str) -> tuple[sa.ColumnElement[bool], ...]:
    return kind.table.c.tenant == tenant, kind.table.c.revoked_at.is_(None)
