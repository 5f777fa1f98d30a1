"""API keys: made, listed, rotated, revoked. Only digests are stored."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.access import StoredKey
from polyolo.control.service import credentials
from polyolo.control.service.ledger import Ledger, Transaction
from polyolo.errors import ConflictError, InvalidValueError
from polyolo.resources import ApiKey
from polyolo.types import Principal

MAX_SOURCES = 50
"""Networks of a key: the gateway goes through all of them, request by request."""


def create(
    ledger: Ledger,
    who: Principal,
    tenant: str,
    *,
    name: str = "",
    scopes: tuple[str, ...] | None = None,
    expires_in: float | None = None,
    sources: Sequence[str] = (),
) -> ApiKey:
    """Make a key; the answer is the only one that holds it.

    scopes: None for all that the caller has. expires_in: seconds. sources: networks (CIDR) or
    addresses that it may be used from; none: from anywhere. Raises InvalidValueError, and
    ForbiddenError for a scope that the caller lacks: no key makes a stronger one.
    """
    chosen, ranges = credentials.granted(who, scopes), _networks(sources)
    with ledger.changing() as transaction:
        credentials.make_room(transaction.connection, credentials.KEYS, tenant)
        expires_at = None if expires_in is None else transaction.now + expires_in
        return issue(transaction, who, tenant, name, chosen, expires_at, ranges)


def issue(
    transaction: Transaction,
    who: Principal,
    tenant: str,
    name: str,
    scopes: tuple[str, ...],
    expires_at: float | None,
    sources: tuple[str, ...] = (),
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
            sources=list(sources),
        )
    )
    detail = " ".join(scopes)
    credentials.note(transaction, credentials.KEYS, who, tenant, identifier, "create", detail)
    return ApiKey(
        id=identifier,
        name=name,
        scopes=scopes,
        created_at=transaction.now,
        expires_at=expires_at,
        key=secret,
        sources=sources,
    )


def every(ledger: Ledger, tenant: str) -> list[ApiKey]:
    """Return a tenant's keys, oldest first, revoked ones included."""
    with ledger.reading() as connection:
        return [_view(row) for row in credentials.every(connection, credentials.KEYS, tenant)]


def rotate(
    ledger: Ledger, who: Principal, tenant: str, identifier: str, *, overlap: float = 0.0
) -> ApiKey:
    """Replace a live key by a new one with the same name, scopes, sources and end.

    overlap: seconds for which the old key goes on working, 0 for none; the one that it had itself
    replaced stops now, so that at most two of a line live. Raises NotFoundError, ConflictError
    for a key that was rotated already, and ForbiddenError for one that may do more than the
    caller's.
    """
    with ledger.changing() as transaction:
        connection, table = transaction.connection, db.api_keys
        row = credentials.rotatable(connection, credentials.KEYS, who, tenant, identifier)
        if row.replaced_by is not None:
            raise ConflictError(f"that key was rotated already; rotate {row.replaced_by} instead")
        before = connection.execute(
            sa.select(table.c.id).where(
                table.c.replaced_by == identifier, table.c.revoked_at.is_(None)
            )
        ).scalars()
        for old in [*before, *([] if overlap else [identifier])]:
            credentials.revoke(transaction, credentials.KEYS, who, tenant, old)
        scopes, sources = tuple(row.scopes), tuple(row.sources or ())
        made = issue(transaction, who, tenant, row.name, scopes, row.expires_at, sources)
        until = transaction.now + overlap
        ends = until if row.expires_at is None else min(until, row.expires_at)
        changed = {"replaced_by": made.id} | ({"expires_at": ends} if overlap else {})
        connection.execute(table.update().where(table.c.id == identifier).values(**changed))
        return made


def revoke(ledger: Ledger, who: Principal, tenant: str, identifier: str) -> None:
    """Have a live key stop working. Raises NotFoundError."""
    with ledger.changing() as transaction:
        credentials.live(transaction.connection, credentials.KEYS, tenant, identifier)
        credentials.revoke(transaction, credentials.KEYS, who, tenant, identifier)


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
        sources=tuple(row.sources or ()),
    )


def _networks(sources: Sequence[str]) -> tuple[str, ...]:
    if len(sources) > MAX_SOURCES:
        raise InvalidValueError(f"sources: at most {MAX_SOURCES} networks")
    try:
        return tuple(dict.fromkeys(str(ip_network(one, strict=False)) for one in sources))
    except ValueError:
        raise InvalidValueError(
            "sources must be networks or addresses, as 203.0.113.0/24, 2001:db8::/32 or 10.1.2.3"
        ) from None


def _view(row: Any) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        scopes=tuple(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        sources=tuple(row.sources or ()),
        replaced_by=row.replaced_by,
    )
