"""Identities: whom the external provider vouches for, and which of our users that is.

An identity is issuer and subject, never an e-mail address, which may pass to another person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.idtoken import IdentityClaims
from polyolo.control.provider import IdentityProvider
from polyolo.control.secrets import Place
from polyolo.control.service import invitations, registration, sessions, users
from polyolo.control.service.ledger import Ledger, Transaction
from polyolo.control.service.sessions import Live
from polyolo.control.service.vault import Vault
from polyolo.errors import ConflictError, ForbiddenError, NotFoundError
from polyolo.resources import Identity
from polyolo.types import Plan

MOST = 10
"""Identities of a user."""
_FOUND_BY = "identities.subject"
_TAKEN = "this identity of the provider belongs to an account here already; sign in with it"


def checked(provider: IdentityProvider, claims: IdentityClaims) -> None:
    """Raise ForbiddenError for somebody whom the operator does not want from the provider."""
    domain = (claims.email or "").partition("@")[2]
    if provider.domains and (
        not claims.email_verified or domain not in {one.lower() for one in provider.domains}
    ):
        raise ForbiddenError(
            "your account at the sign-in provider has no verified e-mail address of a domain that "
            "is let in here; ask the platform's operator"
        )


def sign_in(
    ledger: Ledger,
    vault: Vault,
    provider: IdentityProvider,
    claims: IdentityClaims,
    *,
    instead_of: str = "",
) -> tuple[str, Live]:
    """Return the id of a new session of the user with this identity, and the session.

    Where the operator wants it, a verified address finds the user too, who gets the identity.
    Then their other ways to sign in and their sessions end: whoever made the account may have
    used an address that was not theirs. instead_of: see `sessions.begin`. Raises ForbiddenError.
    """
    with ledger.changing() as transaction:
        connection = transaction.connection
        row = _known(transaction, vault, claims)
        if row is None and provider.link_by_email and claims.email and claims.email_verified:
            row = users.account(connection, vault, claims.email)
            if row is not None:
                for table in (db.sessions, db.identities):
                    connection.execute(table.delete().where(table.c.user == row.id))
                connection.execute(
                    db.users.update().where(db.users.c.id == row.id).values(password="")
                )
                _add(transaction, vault, claims, row)
        if row is None:
            raise ForbiddenError(
                f"nobody here is known by your account at {provider.title}: register with it, "
                "accept an invitation with it, or sign in by password and link it to your account"
            )
        return _begun(transaction, vault, claims, row, instead_of)


def register(
    ledger: Ledger,
    vault: Vault,
    plans: Sequence[Plan],
    claims: IdentityClaims,
    *,
    organization: str,
    invitation: str = "",
    instead_of: str = "",
) -> tuple[str, Live]:
    """Make a tenant and its owner, who has this identity and no password; sign them in.

    Somebody who is known is only signed in. No first key: nobody would see it. invitation: a token
    to use up. Raises ConflictError when the address has an account, ForbiddenError.
    """
    name = registration.tenant_name(organization)
    with ledger.changing() as transaction:
        row = _known(transaction, vault, claims)
        if row is None:
            if invitation:
                invitations.use(transaction, invitation, to_register=True)
            email = _address(claims)
            owner, _ = registration.found(transaction, vault, plans, name, email=email, password="")
            row = users.one(transaction.connection, db.users.c.id == owner.id)
            _add(transaction, vault, claims, row)
        return _begun(transaction, vault, claims, row, instead_of)


def accept(
    ledger: Ledger,
    vault: Vault,
    claims: IdentityClaims,
    *,
    invitation: str,
    instead_of: str = "",
) -> tuple[str, Live]:
    """Make the user that an invitation to a tenant is for, with this identity; sign them in.

    Raises ForbiddenError for a token that is no good, ConflictError for an identity or an address
    that has an account.
    """
    with ledger.changing() as transaction:
        if _known(transaction, vault, claims) is not None:
            raise ConflictError(_TAKEN)
        invited = invitations.use(transaction, invitation, to_register=False)
        made = users.add(
            transaction, vault, invited.tenant, _address(claims), invited.role, password=""
        )
        row = users.one(transaction.connection, db.users.c.id == made.id)
        _add(transaction, vault, claims, row)
        return _begun(transaction, vault, claims, row, instead_of)


def link(ledger: Ledger, vault: Vault, claims: IdentityClaims, live: Live) -> None:
    """Give who is signed in one more way to sign in. Raises ConflictError."""
    with ledger.changing() as transaction:
        row = _known(transaction, vault, claims)
        if row is None:
            row = users.one(transaction.connection, db.users.c.id == live.who.id)
            _add(transaction, vault, claims, row)
        elif row.id != live.who.id:
            raise ConflictError("this identity of the provider belongs to another account here")


def every(ledger: Ledger, vault: Vault, live: Live) -> list[Identity]:
    """Return the identities of who is signed in, oldest first."""
    table = db.identities
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(table)
            .where(table.c.user == live.who.id)
            .order_by(table.c.created_at, table.c.id)
        )
        return [
            Identity(
                id=row.id,
                issuer=row.issuer,
                subject=vault.unseal(connection, row.subject, _place(row.id, live.who.tenant)),
                created_at=row.created_at,
                last_used_at=row.last_used_at,
            )
            for row in rows
        ]


def unlink(ledger: Ledger, live: Live, identity: str) -> None:
    """Take a way to sign in away. Raises NotFoundError, and ConflictError for the only one."""
    user, table = live.who.id, db.identities
    with ledger.changing() as transaction:
        connection = transaction.connection
        own = connection.execute(sa.select(table.c.id).where(table.c.user == user)).scalars().all()
        if identity not in own:
            raise NotFoundError("there is no such identity; list yours to see their ids")
        password = connection.execute(
            sa.select(db.users.c.password).where(db.users.c.id == user)
        ).scalar()
        if not password and len(own) == 1:
            raise ConflictError("this is your only way to sign in; link another identity first")
        connection.execute(table.delete().where(table.c.id == identity))
        transaction.note(
            f"user:{user}",
            "identity.unlink",
            tenant=live.who.tenant,
            resource=f"users/{user}/identities/{identity}",
        )


def _known(transaction: Transaction, vault: Vault, claims: IdentityClaims) -> Any:
    """Return the row of the user with this identity and their tenant's state, or None."""
    connection, table = transaction.connection, db.identities
    vault.prepare(connection)
    found = connection.execute(
        sa.select(table.c.user).where(table.c.digest == _digest(connection, vault, claims))
    ).scalar()
    return None if found is None else users.one(connection, db.users.c.id == found)


def _add(transaction: Transaction, vault: Vault, claims: IdentityClaims, row: Any) -> None:
    connection, table = transaction.connection, db.identities
    count = sa.select(sa.func.count()).select_from(table).where(table.c.user == row.id)
    if connection.execute(count).scalar_one() >= MOST:
        raise ConflictError(f"there are {MOST} identities; unlink one that is not used")
    identifier = names.key_id()
    connection.execute(
        table.insert().values(
            id=identifier,
            user=row.id,
            digest=_digest(connection, vault, claims),
            issuer=claims.issuer,
            subject=vault.seal(connection, claims.subject, _place(identifier, row.tenant)),
            created_at=transaction.now,
            last_used_at=transaction.now,
        )
    )
    transaction.note(
        f"user:{row.id}",
        "identity.link",
        tenant=row.tenant,
        resource=f"users/{row.id}/identities/{identifier}",
        detail=f"by {claims.issuer}",
    )


def _begun(
    transaction: Transaction, vault: Vault, claims: IdentityClaims, row: Any, instead_of: str
) -> tuple[str, Live]:
    connection, table = transaction.connection, db.identities
    connection.execute(
        table.update()
        .where(table.c.digest == _digest(connection, vault, claims))
        .values(last_used_at=transaction.now)
    )
    return sessions.begin(transaction, row, instead_of=instead_of, how=f"by {claims.issuer}")


def _address(claims: IdentityClaims) -> str:
    if claims.email is None:
        raise ForbiddenError(
            "the sign-in provider told no e-mail address of yours, which an account here needs; "
            "let it tell yours, and start again"
        )
    return claims.email


def _digest(connection: sa.Connection, vault: Vault, claims: IdentityClaims) -> str:
    return vault.fingerprint(connection, f"{claims.issuer}\n{claims.subject}", _FOUND_BY)


def _place(identity: str, tenant: str | None) -> Place:
    return Place(table="identities", column="subject", row=identity, tenant=tenant or "")
