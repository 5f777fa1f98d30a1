"""Sessions: who is signed in to the console. Only digests are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from polyolo.control import db, names
from polyolo.control.passwords import Passwords
from polyolo.control.service import users
from polyolo.control.service.ledger import Ledger, Transaction
from polyolo.control.service.vault import Vault
from polyolo.errors import ConflictError, UnauthenticatedError
from polyolo.types import Principal

IDLE_S = 3600.0
"""Seconds without a request after which a session is over: a lunch break on a shared screen."""
LONGEST_S = 12 * 3600.0
"""Seconds after which it is over in any case: a working day."""
MOST = 20
"""Sessions of a user; the one that was used least lately makes way for another."""
_SEEN_S = 60.0
"""Seconds between two notes of when it was last used: reading must not become writing."""

_WRONG = "the e-mail address or the password is wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A session that may go on."""

    digest: str
    who: Principal
    tenant_state: str
    expires_at: float


def sign_in(
    ledger: Ledger,
    vault: Vault,
    passwords: Passwords,
    *,
    email: str,
    password: str,
    instead_of: str = "",
) -> tuple[str, Live]:
    """Return the id of a new session, told only here, and the session.

    email: normal. instead_of: see `begin`. Raises UnauthenticatedError, in the same words and
    after the same work whether the address is known or not. Takes as long as a password's hash.
    """
    with ledger.reading() as connection:
        row = users.account(connection, vault, email)
    stored = None if row is None else str(row.password)
    if not passwords.matches(stored, password) or row is None or stored is None:
        raise UnauthenticatedError(_WRONG)
    renewed = passwords.hash(password) if passwords.outdated(stored) else stored
    with ledger.changing() as transaction:
        # Whoever changed the password meanwhile wanted this one to end.
        unchanged = sa.and_(db.users.c.id == row.id, db.users.c.password == stored)
        if not transaction.connection.execute(
            db.users.update().where(unchanged).values(password=renewed)
        ).rowcount:
            raise UnauthenticatedError(_WRONG)
        return begin(transaction, row, instead_of=instead_of)


def begin(
    transaction: Transaction, row: Any, *, instead_of: str = "", how: str = ""
) -> tuple[str, Live]:
    """Return the id of a new session within a larger change, told only here, and the session.

    row: of the user, as `users.one` has it. instead_of: the id of the session that the browser
    had: it ends, and never becomes the new one. how: they proved themselves, for the audit log.
    """
    session = names.session_id()
    digest, table = names.digest(session), db.sessions
    _make_room(transaction, row.id)
    if instead_of:
        transaction.connection.execute(
            table.delete().where(table.c.digest == names.digest(instead_of))
        )
    transaction.connection.execute(
        table.insert().values(
            digest=digest, user=row.id, created_at=transaction.now, seen_at=transaction.now
        )
    )
    transaction.note(
        f"user:{row.id}",
        "session.begin",
        tenant=row.tenant,
        resource=f"users/{row.id}",
        detail=how,
    )
    return session, _live(row, digest, transaction.now)


def find(ledger: Ledger, session: str) -> Live:
    """Return a session by its id. Raises UnauthenticatedError when there is none, or no longer."""
    digest = names.digest(session)
    now = ledger.clock()
    with ledger.reading() as connection:
        row = connection.execute(
            sa.select(
                db.users,
                db.tenants.c.state,
                db.sessions.c.created_at.label("began_at"),
                db.sessions.c.seen_at,
            )
            .select_from(db.sessions)
            .join(db.users)
            .join(db.tenants, db.tenants.c.id == db.users.c.tenant)
            .where(db.sessions.c.digest == digest)
        ).one_or_none()
    if (
        row is None
        or now >= row.seen_at + IDLE_S
        or now >= row.began_at + LONGEST_S
        or row.state == "deleting"
    ):
        raise UnauthenticatedError("you are not signed in, or no longer; sign in again")
    if now - row.seen_at >= _SEEN_S:
        with ledger.changing() as transaction:
            transaction.connection.execute(
                db.sessions.update().where(db.sessions.c.digest == digest).values(seen_at=now)
            )
    return _live(row, digest, row.began_at)


def end(ledger: Ledger, live: Live) -> None:
    """Sign out."""
    with ledger.changing() as transaction:
        transaction.connection.execute(
            db.sessions.delete().where(db.sessions.c.digest == live.digest)
        )
        transaction.note(
            f"user:{live.who.id}",
            "session.end",
            tenant=live.who.tenant,
            resource=f"users/{live.who.id}",
        )


def change_password(
    ledger: Ledger, passwords: Passwords, live: Live, *, old: str, new: str
) -> None:
    """Change the password of who is signed in; their other sessions end.

    Raises UnauthenticatedError when `old` is not the password. Takes as long as two hashes.
    """
    user = live.who.id
    stored = confirm(ledger, passwords, user, old)
    if not stored:
        raise ConflictError("this account has no password: it signs in through the provider")
    hashed = passwords.hash(new)
    with ledger.changing() as transaction:
        unchanged = sa.and_(db.users.c.id == user, db.users.c.password == stored)
        if not transaction.connection.execute(
            db.users.update().where(unchanged).values(password=hashed)
        ).rowcount:
            raise UnauthenticatedError("the password is wrong")
        transaction.connection.execute(
            db.sessions.delete().where(
                db.sessions.c.user == user, db.sessions.c.digest != live.digest
            )
        )
        transaction.note(
            f"user:{user}", "user.password", tenant=live.who.tenant, resource=f"users/{user}"
        )


def confirm(ledger: Ledger, passwords: Passwords, user: str, password: str) -> str:
    """Return what is stored of a user's password, "" if they have none.

    Raises UnauthenticatedError unless `password` is it. Takes as long as a password's hash.
    """
    with ledger.reading() as connection:
        stored = connection.execute(
            sa.select(db.users.c.password).where(db.users.c.id == user)
        ).scalar()
    if stored and not passwords.matches(stored, password):
        raise UnauthenticatedError("the password is wrong")
    return stored or ""


def _make_room(transaction: Transaction, user: str) -> None:
    table, now = db.sessions, transaction.now
    over = sa.or_(table.c.seen_at <= now - IDLE_S, table.c.created_at <= now - LONGEST_S)
    transaction.connection.execute(table.delete().where(over))
    kept = (
        sa.select(table.c.digest)
        .where(table.c.user == user)
        .order_by(table.c.seen_at.desc(), table.c.digest)
        .limit(MOST - 1)
    )
    transaction.connection.execute(
        table.delete().where(table.c.user == user, table.c.digest.not_in(kept))
    )


def _live(row: Any, digest: str, began_at: float) -> Live:
    return Live(
        digest=digest,
        who=users.principal(row.id, row.tenant, row.role),
        tenant_state=row.state,
        expires_at=began_at + LONGEST_S,
    )
