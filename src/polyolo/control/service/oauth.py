"""OAuth clients and their access tokens: made, issued, judged, revoked. Only digests are stored."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from polyolo import tokens
from polyolo.control import db, names
from polyolo.control.service import credentials
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import TOKEN_S, Signer
from polyolo.errors import InvalidTokenError, PolyoloError, RateLimitedError
from polyolo.resources import OAuthClient
from polyolo.tokens import Claims
from polyolo.types import ClientEntry, Principal, TenantState

MAX_REVOKED = 1000
"""Tokens of one client that are revoked and not over yet: every gateway holds them too."""

_NOBODY = "0" * 64  # compared against when there is no such client, for the same time


class RefusedError(Exception):
    """A request to /oauth2 is refused, in the words of RFC 6749 section 5.2."""

    def __init__(self, code: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A client that has proved itself."""

    id: str
    tenant: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """An access token, fresh."""

    access_token: str
    expires_in: int
    scopes: tuple[str, ...]


def create(
    ledger: Ledger, who: Principal, tenant: str, name: str, scopes: tuple[str, ...] | None
) -> OAuthClient:
    """Make a client; the answer is the only one that holds its secret.

    scopes: None for all that the caller has. Raises InvalidValueError, ForbiddenError for a scope
    that the caller lacks, ConflictError for one client too many.
    """
    chosen = credentials.granted(who, scopes)
    with ledger.changing() as transaction:
        table = db.oauth_clients
        credentials.make_room(transaction.connection, credentials.CLIENTS, tenant)
        identifier, secret = names.client_id(), names.client_secret()
        transaction.connection.execute(
            table.insert().values(
                id=identifier,
                tenant=tenant,
                name=name,
                digest=names.digest(secret),
                scopes=list(chosen),
                created_at=transaction.now,
            )
        )
        detail = " ".join(chosen)
        credentials.note(
            transaction, credentials.CLIENTS, who, tenant, identifier, "create", detail
        )
        row = credentials.live(transaction.connection, credentials.CLIENTS, tenant, identifier)
    return _view(row, secret)


def every(ledger: Ledger, tenant: str) -> list[OAuthClient]:
    """Return a tenant's clients, oldest first, revoked ones included."""
    with ledger.reading() as connection:
        return [_view(row) for row in credentials.every(connection, credentials.CLIENTS, tenant)]


def rotate(
    ledger: Ledger, who: Principal, tenant: str, identifier: str, *, overlap: float = 0.0
) -> OAuthClient:
    """Give a live client a new secret; the answer is the only one that holds it.

    overlap: seconds for which the secret that it had goes on working, 0 for none; the one before
    that stops now, so that at most two are good. Its tokens stay good. Raises NotFoundError, and
    ForbiddenError for a client that may do more than the caller.
    """
    table, secret = db.oauth_clients, names.client_secret()
    with ledger.changing() as transaction:
        connection = transaction.connection
        row = credentials.rotatable(connection, credentials.CLIENTS, who, tenant, identifier)
        connection.execute(
            table.update()
            .where(table.c.id == identifier)
            .values(
                digest=names.digest(secret),
                previous_digest=row.digest if overlap else None,
                previous_until=transaction.now + overlap if overlap else None,
            )
        )
        detail = f"the old secret is good for {overlap:.0f} s" if overlap else ""
        credentials.note(
            transaction, credentials.CLIENTS, who, tenant, identifier, "rotate", detail
        )
        row = credentials.live(connection, credentials.CLIENTS, tenant, identifier)
    return _view(row, secret)


def revoke(ledger: Ledger, who: Principal, tenant: str, identifier: str) -> None:
    """Have a live client, and all its tokens, stop working. Raises NotFoundError."""
    with ledger.changing() as transaction:
        credentials.live(transaction.connection, credentials.CLIENTS, tenant, identifier)
        credentials.revoke(transaction, credentials.CLIENTS, who, tenant, identifier)


def authenticate(ledger: Ledger, identifier: str, secret: str) -> Known:
    """Return the client that proves itself so. Raises RefusedError, the same for every reason."""
    plain = identifier.isascii() and identifier.isprintable()  # a database need not take others
    row = _find(ledger, identifier) if plain else None
    good = [_NOBODY] if row is None else [row.digest, _previous(row, ledger.clock())]
    same = [hmac.compare_digest(names.digest(secret), digest) for digest in good]
    if row is None or not any(same) or row.revoked_at is not None or row.state == "deleting":
        raise RefusedError("invalid_client", "client id or secret is wrong, or was revoked", 401)
    if row.state != TenantState.ACTIVE:
        raise RefusedError("unauthorized_client", "this tenant is suspended")
    return Known(id=row.id, tenant=row.tenant, scopes=tuple(row.scopes))


def issue(ledger: Ledger, signer: Signer, client: Known, scope: str | None) -> Issued:
    """Return a fresh token for a client. scope: space-separated; None: all that it has.

    Raises RefusedError for a scope that the client lacks. No event: nothing has changed.
    """
    asked = client.scopes if scope is None else tuple(dict.fromkeys(scope.split()))
    if not asked or not set(asked) <= set(client.scopes):
        raise RefusedError(
            "invalid_scope", f"this client may ask for: {' '.join(client.scopes) or 'nothing'}"
        )
    now = int(ledger.clock())
    claims = Claims(
        id=secrets.token_urlsafe(18),
        client=client.id,
        tenant=client.tenant,
        scopes=asked,
        issued_at=now,
        expires_at=now + TOKEN_S,
    )
    return Issued(access_token=signer.sign(claims), expires_in=TOKEN_S, scopes=asked)


def revoke_token(ledger: Ledger, signer: Signer, client: Known, token: str) -> None:
    """Have one of the client's own tokens stop working (RFC 7009).

    What is no live token of this client is passed over: its holder has nothing to fear from it.
    Raises RateLimitedError when there are too many at once.
    """
    try:
        claims = _judged(ledger, signer, token)
    except InvalidTokenError:
        return
    if claims.client != client.id:
        return
    table = db.revoked_tokens
    with ledger.changing() as transaction:
        connection, now = transaction.connection, transaction.now
        connection.execute(table.delete().where(table.c.expires_at + tokens.LEEWAY_S <= now))
        of_client = sa.select(sa.func.count()).where(table.c.client == client.id)
        if connection.execute(of_client).scalar_one() >= MAX_REVOKED:
            raise RateLimitedError(
                "too many tokens were revoked at once; revoke the client instead", retry_after=60
            )
        row = {"id": claims.id, "client": client.id, "expires_at": float(claims.expires_at)}
        db.insert_new(connection, table, [row])
        transaction.note(
            f"token:{client.id}",
            "token.revoke",
            tenant=client.tenant,
            resource=f"tokens/{claims.id}",
        )


def introspect(ledger: Ledger, signer: Signer, client: Known, token: str) -> dict[str, Any]:
    """Say what is in a live token of the client's own tenant (RFC 7662); of others, nothing."""
    try:
        claims = _judged(ledger, signer, token)
        who, _ = principal(ledger, signer, token)
    except PolyoloError:
        return {"active": False}
    if claims.tenant != client.tenant:
        return {"active": False}
    return {
        "active": True,
        "scope": " ".join(who.scopes),
        "client_id": claims.client,
        "sub": claims.client,
        "tenant": claims.tenant,
        "token_type": "Bearer",
        "exp": claims.expires_at,
        "iat": claims.issued_at,
        "nbf": claims.issued_at,
        "iss": signer.issuer,
        "aud": signer.issuer,
        "jti": claims.id,
    }


def principal(ledger: Ledger, signer: Signer, token: str) -> tuple[Principal, str]:
    """Return who presents an access token, and their tenant's state. Raises InvalidTokenError."""
    claims = _judged(ledger, signer, token)
    row = _find(ledger, claims.client)
    gone = row is None or row.revoked_at is not None or row.state == "deleting"
    if row is None or gone or row.tenant != claims.tenant:
        raise InvalidTokenError("this access token was revoked; get a new one")
    scopes = tokens.in_force(claims, row.scopes)
    return Principal(kind="token", id=row.id, tenant=row.tenant, scopes=scopes), str(row.state)


def entries(connection: sa.Connection, whose: sa.ColumnElement[bool]) -> tuple[ClientEntry, ...]:
    """Return the live clients of some tenants, for the snapshot. whose: a condition on tenants."""
    table = db.oauth_clients
    rows = connection.execute(
        sa.select(table).join_from(table, db.tenants).where(table.c.revoked_at.is_(None), whose)
    )
    return tuple(
        ClientEntry(id=row.id, tenant=row.tenant, scopes=tuple(row.scopes)) for row in rows
    )


def _judged(ledger: Ledger, signer: Signer, token: str) -> Claims:
    with ledger.reading() as connection:
        rules = signer.rules(connection)
    raw = token.encode("utf-8", "replace")
    claims = tokens.judge(raw, rules, tokens.public_keys(rules), ledger.clock())
    if claims.id in rules.revoked:
        raise InvalidTokenError("this access token was revoked; get a new one")
    return claims


def _find(ledger: Ledger, identifier: str) -> Any:
    with ledger.reading() as connection:
        return connection.execute(
            sa.select(db.oauth_clients, db.tenants.c.state)
            .join_from(db.oauth_clients, db.tenants)
            .where(db.oauth_clients.c.id == identifier)
        ).one_or_none()


def _previous(row: Any, now: float) -> str:
    """Return the digest of the secret before this one, if that is still good."""
    live = row.previous_digest is not None and now < row.previous_until
    return str(row.previous_digest) if live else _NOBODY


def _view(row: Any, secret: str | None = None) -> OAuthClient:
    return OAuthClient(
        id=row.id,
        name=row.name,
        scopes=tuple(row.scopes),
        created_at=row.created_at,
        client_id=row.id,
        client_secret=secret,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        previous_until=row.previous_until,
    )
