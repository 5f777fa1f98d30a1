"""Invitations: the right to become a user of a tenant, or to register one, used once."""

from __future__ import annotations

import hmac
from typing import Any

import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.service import users
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.control.service.vault import Vault
from polyolo.errors import ConflictError, ForbiddenError, InvalidValueError, NotFoundError
from polyolo.resources import Invitation, User
from polyolo.types import Principal

DEFAULT_S = 7 * 86400.0
LONGEST_S = 30 * 86400.0
MAX_OPEN = 100
"""Open invitations of a tenant, or of the operator."""


def create(
    ledger: Ledger,
    who: Principal,
    tenant: str | None,
    *,
    role: str,
    name: str = "",
    expires_in: float | None = None,
) -> Invitation:
    """Make an invitation; the answer is the only one that holds its token.

    tenant: None to invite somebody to register. expires_in: seconds, at most 30 days; None for
    7 days. Raises InvalidValueError, and ConflictError when too many are open.
    """
    users.checked_role(role)
    if expires_in is not None and expires_in > LONGEST_S:
        raise InvalidValueError("expires_in: an invitation is good for 30 days at most")
    identifier = names.key_id()
    token = names.invitation_token(identifier)
    with ledger.changing() as transaction:
        connection = transaction.connection
        now = transaction.now
        # Those that can no longer be used are of no use to anybody.
        connection.execute(
            db.invitations.delete().where(_of(tenant), db.invitations.c.expires_at <= now)
        )
        count = connection.execute(
            sa.select(sa.func.count())
            .select_from(db.invitations)
            .where(_of(tenant), db.invitations.c.used_at.is_(None))
        ).scalar_one()
        if count >= MAX_OPEN:
            raise ConflictError(f"there are {count} open invitations; withdraw one")
        row = {
            "id": identifier,
            "role": role,
            "name": name,
            "created_at": now,
            "expires_at": now + (expires_in or DEFAULT_S),
        }
        connection.execute(
            db.invitations.insert().values(tenant=tenant, digest=names.digest(token), **row)
        )
        transaction.note(
            actor(who),
            "invitation.create",
            tenant=tenant,
            resource=f"invitations/{identifier}",
            detail=f"role {role}",
        )
    return Invitation(token=token, **row)  # type: ignore[arg-type]  # the columns of the row


def every(ledger: Ledger, tenant: str | None) -> list[Invitation]:
    """Return invitations, oldest first; tenant None: those to register."""
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(db.invitations)
            .where(_of(tenant))
            .order_by(db.invitations.c.created_at, db.invitations.c.id)
        )
        return [_view(row) for row in rows]


def withdraw(ledger: Ledger, who: Principal, tenant: str | None, identifier: str) -> None:
    """Delete an invitation that was not used. Raises NotFoundError."""
    with ledger.changing() as transaction:
        gone = transaction.connection.execute(
            db.invitations.delete().where(
                _of(tenant),
                db.invitations.c.id == identifier,
                db.invitations.c.used_at.is_(None),
            )
        ).rowcount
        if not gone:
            raise NotFoundError("there is no such open invitation")
        transaction.note(
            actor(who),
            "invitation.withdraw",
            tenant=tenant,
            resource=f"invitations/{identifier}",
        )


def accept(ledger: Ledger, vault: Vault, token: str, *, email: str, password: str) -> User:
    """Make the user that an invitation to a tenant is for. password: its hash.

    Raises ForbiddenError for a token that is no good, ConflictError (see `users.add`).
    """
    with ledger.changing() as transaction:
        row = use(transaction, token, to_register=False)
        return users.add(transaction, vault, row.tenant, email, row.role, password)


def check(ledger: Ledger, token: str, *, to_register: bool) -> str | None:
    """Return the id of the tenant that a token invites into; None for one to register.

    Raises ForbiddenError for a token that is no good, before work is done on its behalf.
    """
    with ledger.reading() as connection:
        found = _good(connection, token, ledger.clock(), to_register=to_register)
    tenant: str | None = found.tenant
    return tenant


def use(transaction: Transaction, token: str, *, to_register: bool) -> Any:
    """Use a token up within a larger change, and return its row. Raises ForbiddenError."""
    row = _good(transaction.connection, token, transaction.now, to_register=to_register)
    transaction.connection.execute(
        db.invitations.update().where(db.invitations.c.id == row.id).values(used_at=transaction.now)
    )
    return row


def _good(connection: sa.Connection, token: str, now: float, *, to_register: bool) -> Any:
    row = connection.execute(
        sa.select(db.invitations, db.tenants.c.state.label("state"))
        .join_from(db.invitations, db.tenants, isouter=True)
        .where(db.invitations.c.id == names.invitation_id_of(token))
    ).one_or_none()
    if (
        row is None
        or not hmac.compare_digest(row.digest, names.digest(token))
        or row.used_at is not None
        or row.expires_at <= now
        or (row.tenant is None) is not to_register
        or row.state == "deleting"
    ):
        raise ForbiddenError("this invitation is not known, was used or has expired; ask for one")
    return row


def _of(tenant: str | None) -> sa.ColumnElement[bool]:
    column = db.invitations.c.tenant
    return column.is_(None) if tenant is None else column == tenant


def _view(row: Any) -> Invitation:
    return Invitation(
        id=row.id,
        name=row.name,
        role=row.role,
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
    )
