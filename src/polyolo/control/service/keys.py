"""API keys: made, listed, rotated, revoked. Only digests are stored."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.access import StoredKey
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.errors import ConflictError, ForbiddenError, InvalidValueError, NotFoundError
from polyolo.types import ApiKey, Principal

MAX_LIVE = 100
"""Live keys of a tenant: every gateway holds all of them in memory."""


def create(
    ledger: Ledger,
    who: Principal,
    tenant: str,
    *,
    name: str = "",
    scopes: tuple[str, ...] | None = None,
    expires_in: float | None = None,
) -> ApiKey:
    """Make a key; the answer is the only one that holds it.

    scopes: None for all that the caller has. expires_in: seconds. Raises InvalidValueError, and
    ForbiddenError for a scope that the caller lacks: no key makes a stronger one.
    """
    own = names.SCOPES if who.kind == "operator" else who.scopes
    chosen = own if scopes is None else tuple(dict.fromkeys(scopes))
    for scope in chosen:
        if scope not in names.SCOPES:
            raise InvalidValueError(f"scopes: {scope!r} is not one of {', '.join(names.SCOPES)}")
        if scope not in own:
            raise ForbiddenError(f"your own key lacks the scope {scope}, so it cannot give it")
    with ledger.changing() as transaction:
        live = transaction.connection.execute(
            sa.select(sa.func.count())
            .select_from(db.api_keys)
            .where(db.api_keys.c.tenant == tenant, db.api_keys.c.revoked_at.is_(None))
        ).scalar_one()
        if live >= MAX_LIVE:
            raise ConflictError(f"there are {live} live keys; revoke one that is not used")
        expires_at = None if expires_in is None else transaction.now + expires_in
        return issue(transaction, who, tenant, name, chosen, expires_at)


def issue(
    transaction: Transaction,
    who: Principal,
    tenant: str,
    name: str,
    scopes: tuple[str, ...],
    expires_at: float | None,
) -> ApiKey:
    """Add a key within a larger change, and return it with its secret."""
    identifier = names.key_id()
    secret = names.api_key(identifier)
    transaction.connection.execute(
        db.api_keys.insert().values(
            id=identifier,
            tenant=tenant,
            name=name,
            digest=names.digest(secret),
            scopes=list(scopes),
            created_at=transaction.now,
            expires_at=expires_at,
        )
    )
    transaction.note(
        actor(who),
        "key.create",
        tenant=tenant,
        resource=f"keys/{identifier}",
        detail=" ".join(scopes),
    )
    return ApiKey(
        id=identifier,
        name=name,
        scopes=scopes,
        created_at=transaction.now,
        expires_at=expires_at,
        key=secret,
    )


def every(ledger: Ledger, tenant: str) -> list[ApiKey]:
    """Return a tenant's keys, oldest first, revoked ones included."""
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(db.api_keys)
            .where(db.api_keys.c.tenant == tenant)
            .order_by(db.api_keys.c.created_at, db.api_keys.c.id)
        )
        return [_view(row) for row in rows]


def rotate(ledger: Ledger, who: Principal, tenant: str, identifier: str) -> ApiKey:
    """Replace a live key by a new one with the same name, scopes and end; the old one stops.

    Raises NotFoundError, and ForbiddenError for a key that may do more than the caller's.
    """
    with ledger.changing() as transaction:
        row = _live(transaction.connection, tenant, identifier)
        beyond = set(row.scopes) - set(who.scopes)
        if who.kind != "operator" and beyond:
            raise ForbiddenError(
                f"that key has scopes that yours lacks: {', '.join(sorted(beyond))}"
            )
        _revoke(transaction, who, tenant, identifier)
        scopes = tuple(row.scopes)
        return issue(transaction, who, tenant, row.name, scopes, row.expires_at)


def revoke(ledger: Ledger, who: Principal, tenant: str, identifier: str) -> None:
    """Have a live key stop working. Raises NotFoundError."""
    with ledger.changing() as transaction:
        _live(transaction.connection, tenant, identifier)
        _revoke(transaction, who, tenant, identifier)


def find(ledger: Ledger, identifier: str) -> StoredKey | None:
    """Return a key by its id, for `access.principal` to judge."""
    with ledger.reading() as connection:
        row = connection.execute(
            sa.select(db.api_keys, db.tenants.c.state.label("tenant_state"))
            .join_from(db.api_keys, db.tenants)
            .where(db.api_keys.c.id == identifier)
        ).one_or_none()
    if row is None:
        return None
    return StoredKey(
        id=row.id,
        tenant=row.tenant,
        digest=row.digest,
        scopes=tuple(row.scopes),
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        tenant_state=row.tenant_state,
    )


def _live(connection: sa.Connection, tenant: str, identifier: str) -> Any:
    row = connection.execute(
        sa.select(db.api_keys).where(
            db.api_keys.c.id == identifier,
            db.api_keys.c.tenant == tenant,
            db.api_keys.c.revoked_at.is_(None),
        )
    ).one_or_none()
    if row is None:
        raise NotFoundError("there is no such live key; list the keys to see their ids")
    return row


def _revoke(transaction: Transaction, who: Principal, tenant: str, identifier: str) -> None:
    transaction.connection.execute(
        db.api_keys.update()
        .where(db.api_keys.c.id == identifier)
        .values(revoked_at=transaction.now)
    )
    transaction.note(actor(who), "key.revoke", tenant=tenant, resource=f"keys/{identifier}")


def _view(row: Any) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=tuple(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
