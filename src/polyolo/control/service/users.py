"""Users: the people of a tenant, found by their e-mail address, each in one role."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.secrets import Place, SealedError
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.control.service.vault import Vault
from polyolo.errors import ConflictError, InvalidValueError, NotFoundError
from polyolo.permissions import ROLES
from polyolo.resources import User
from polyolo.types import Principal

MAX_USERS = 200
"""Users of a tenant."""
OWNER = "owner"
_FOUND_BY = "users.email"


def principal(user: str, tenant: str, role: str) -> Principal:
    """Return who a user is when they ask for something."""
    return Principal(kind="user", id=user, tenant=tenant, scopes=ROLES[role])


def checked_role(role: str) -> str:
    """Return a role that there is; raise InvalidValueError for others."""
    if role not in ROLES:
        raise InvalidValueError(f"role: {role!r} is not one of {', '.join(ROLES)}")
    return role


def add(
    transaction: Transaction, vault: Vault, tenant: str, email: str, role: str, password: str
) -> User:
    """Add a user within a larger change. email: normal. password: its hash; "": none.

    Raises ConflictError when the tenant is full, or the address has an account: in words that
    leave open which registration it was.
    """
    connection = transaction.connection
    count = connection.execute(
        sa.select(sa.func.count()).select_from(db.users).where(db.users.c.tenant == tenant)
    ).scalar_one()
    if count >= MAX_USERS:
        raise ConflictError(f"there are {count} users; remove one that is not needed")
    identifier = names.user_id()
    vault.prepare(connection)
    digest = vault.fingerprint(connection, email, _FOUND_BY)
    taken = sa.select(db.users.c.id).where(db.users.c.email_digest == digest)
    if connection.execute(taken).first() is not None:
        raise ConflictError(
            "no account can be made with these details; sign in if you have one already"
        )
    connection.execute(
        db.users.insert().values(
            id=identifier,
            tenant=tenant,
            email=vault.seal(connection, email, _place(identifier, tenant)),
            email_digest=digest,
            role=role,
            password=password,
            created_at=transaction.now,
        )
    )
    transaction.note(
        f"user:{identifier}",
        "user.create",
        tenant=tenant,
        resource=f"users/{identifier}",
        detail=f"role {role}",
    )
    return User(id=identifier, email=email, role=role, created_at=transaction.now)


def every(ledger: Ledger, vault: Vault, tenant: str) -> list[User]:
    """Return a tenant's users, oldest first."""
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(db.users)
            .where(db.users.c.tenant == tenant)
            .order_by(db.users.c.created_at, db.users.c.id)
        )
        return [_view(connection, vault, row) for row in rows]


def get(ledger: Ledger, vault: Vault, tenant: str, user: str) -> User:
    """Return one user. Raises NotFoundError."""
    with ledger.reading() as connection:
        return _view(connection, vault, _row(connection, tenant, user))


def account(connection: sa.Connection, vault: Vault, email: str) -> Any:
    """Return the row of the user with this address (normal) and their tenant's state, or None."""
    try:
        digest = vault.fingerprint(connection, email, _FOUND_BY)
    except SealedError:  # there has never been a user
        return None
    return one(connection, db.users.c.email_digest == digest)


def one(connection: sa.Connection, which: sa.ColumnElement[bool]) -> Any:
    """Return the row of a user and their tenant's state, or None. which: picks at most one."""
    return connection.execute(
        sa.select(db.users, db.tenants.c.state)
        .join_from(db.users, db.tenants)
        .where(which, db.tenants.c.state != "deleting")
    ).one_or_none()


def set_role(
    ledger: Ledger, vault: Vault, who: Principal, tenant: str, user: str, role: str
) -> User:
    """Give a user another role, in force with their next request.

    Raises NotFoundError, InvalidValueError, and ConflictError for the last owner.
    """
    checked_role(role)
    with ledger.changing() as transaction:
        row = _row(transaction.connection, tenant, user)
        if row.role != role:
            if role != OWNER:
                _leave_an_owner(transaction.connection, row)
            transaction.connection.execute(
                db.users.update().where(db.users.c.id == user).values(role=role)
            )
            transaction.note(
                actor(who),
                "user.role",
                tenant=tenant,
                resource=f"users/{user}",
                detail=f"{row.role} to {role}",
            )
        return _view(transaction.connection, vault, _row(transaction.connection, tenant, user))


def remove(ledger: Ledger, who: Principal, tenant: str, user: str) -> None:
    """Remove a user; their sessions end at once, the API keys that they made stay.

    Raises NotFoundError, and ConflictError for the last owner.
    """
    with ledger.changing() as transaction:
        connection = transaction.connection
        row = _row(connection, tenant, user)
        _leave_an_owner(connection, row)
        for table in (db.sessions, db.identities):
            connection.execute(table.delete().where(table.c.user == user))
        connection.execute(db.users.delete().where(db.users.c.id == user))
        transaction.note(actor(who), "user.remove", tenant=tenant, resource=f"users/{user}")


def _place(user: str, tenant: str) -> Place:
    return Place(table="users", column="email", row=user, tenant=tenant)


def _view(connection: sa.Connection, vault: Vault, row: Any) -> User:
    email = vault.unseal(connection, row.email, _place(row.id, row.tenant))
    return User(id=row.id, email=email, role=row.role, created_at=row.created_at)


def _row(connection: sa.Connection, tenant: str, user: str) -> Any:
    row = connection.execute(
        sa.select(db.users).where(db.users.c.id == user, db.users.c.tenant == tenant)
    ).one_or_none()
    if row is None:
        raise NotFoundError("there is no such user; list the users to see their ids")
    return row


def _leave_an_owner(connection: sa.Connection, row: Any) -> None:
    if row.role != OWNER:
        return
    others = sa.select(db.users.c.id).where(
        db.users.c.tenant == row.tenant, db.users.c.role == OWNER, db.users.c.id != row.id
    )
    if connection.execute(others).first() is None:
        raise ConflictError("this is the last owner; make somebody else an owner first")
