"""The keys that sign access tokens: made, published ahead of use, changed for new ones, dropped."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from joserfc.jwk import ECKey

from polyolo import tokens
from polyolo.control import db
from polyolo.control.secrets import Place
from polyolo.control.service.ledger import Ledger, Transaction, actor
from polyolo.control.service.vault import Vault
from polyolo.tokens import Claims
from polyolo.types import Principal, TokenRules

TOKEN_S = 900
"""Life of an access token, seconds: what a thief has of it, and what a revocation that does not
arrive costs at most."""
ROTATE_S = 30 * 86400.0
"""A signing key's time. A month bounds what a key that leaked unseen is good for."""
AHEAD_S = 600.0
"""A new key is published so long before it signs, for those who keep our keys for a while."""


class Signer:
    """Signs access tokens, and says what makes one good. Any thread may use it."""

    def __init__(self, ledger: Ledger, vault: Vault, public_url: str) -> None:
        """Make the first key if there is none. public_url: where clients reach the platform."""
        self._ledger = ledger
        self._vault = vault
        self.issuer = public_url.rstrip("/")
        self._private: dict[str, ECKey] = {}
        self.renew()

    def renew(self, *, by: Principal | None = None) -> None:
        """Make the next key when it is time, and drop those that no live token was signed with.

        by: who wants it at once, as after a leak: the tokens signed so far stop being good.
        """
        with self._ledger.changing() as transaction:
            rows = _rows(transaction.connection)
            moment = transaction.now
            stale = [old.id for old, new in pairwise(rows) if _over(new, moment)]
            if by:
                stale = [row.id for row in rows]
            due = not rows or by or rows[-1].signs_from + ROTATE_S <= moment
            if stale:
                table = db.signing_keys
                transaction.connection.execute(table.delete().where(table.c.id.in_(stale)))
                transaction.touch(None)
            if due:
                ahead = 0.0 if by or not rows else AHEAD_S
                self._add(transaction, by, moment + ahead)

    def _add(self, transaction: Transaction, by: Principal | None, signs_from: float) -> None:
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": tokens.ALGORITHM})
        kid = key.thumbprint()
        private = json.dumps(key.as_dict(private=True))
        transaction.connection.execute(
            db.signing_keys.insert().values(
                id=kid,
                public={**key.as_dict(private=False), "kid": kid},
                private=self._vault.seal(transaction.connection, private, _place(kid)),
                signs_from=signs_from,
            )
        )
        who = "platform" if by is None else actor(by)
        resource = f"signing-keys/{kid}"
        transaction.note(who, "signing-key.create", tenant=None, resource=resource)

    def sign(self, claims: Claims) -> str:
        """Return the token that says `claims`."""
        with self._ledger.reading() as connection:
            rows = _rows(connection)
            now = self._ledger.clock()
            row = [row for row in rows if row.signs_from <= now][-1]
            key = self._private.get(row.id)
            if key is None:
                opened = self._vault.unseal(connection, row.private, _place(row.id))
                key = self._private[row.id] = ECKey.import_key(json.loads(opened))
            rules = self.rules(connection)
        token = tokens.sign(claims, rules, row.id, key)
        if rows[-1].signs_from + ROTATE_S <= now or any(_over(r, now) for r in rows[1:]):
            self.renew()
        return token

    def rules(self, connection: sa.Connection) -> TokenRules:
        """Return what makes a token good now."""
        now = self._ledger.clock()
        rows = _rows(connection)
        live = [
            row
            for row, new in zip(rows, [*rows[1:], None], strict=True)
            if new is None or not _over(new, now)
        ]
        revoked = sa.select(db.revoked_tokens.c.id).where(
            db.revoked_tokens.c.expires_at + tokens.LEEWAY_S > now
        )
        return TokenRules(
            issuer=self.issuer,
            audience=self.issuer,
            keys=tuple(row.public for row in live),
            revoked=tuple(connection.execute(revoked).scalars()),
        )


def _rows(connection: sa.Connection) -> list[Any]:
    order = (db.signing_keys.c.signs_from, db.signing_keys.c.id)
    return list(connection.execute(sa.select(db.signing_keys).order_by(*order)))


def _over(successor: Any, now: float) -> bool:
    """Say whether the last token of a key is over, by its successor's row."""
    return bool(successor.signs_from + TOKEN_S + 2 * tokens.LEEWAY_S <= now)


def _place(kid: str) -> Place:
    return Place(table="signing_keys", column="private", row=kid, tenant="")
