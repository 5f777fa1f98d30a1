"""Checks access tokens against the snapshot, without asking anybody, and each only once."""

from __future__ import annotations

import hashlib
from collections.abc import Set

from polyolo import tokens
from polyolo.errors import InvalidTokenError
from polyolo.gateway.entries import Entries
from polyolo.tokens import Claims
from polyolo.types import ClientEntry, Principal, Snapshot, TokenRules


class TokenBook:
    """The rules of the snapshot in force, and the tokens seen under them. On the loop's thread.

    A token's signature is checked at its first use; its time, its client and its revocation at
    every use.
    """

    def __init__(self, *, remembered: int = 20_000) -> None:
        """Begin with no rules: no token is good.

        remembered: tokens whose signature need not be checked again; about 1 KB each.
        """
        self._remembered = remembered
        self._rules: TokenRules | None = None
        self._keys = tokens.public_keys(None)
        self._clients: Entries[ClientEntry] = Entries()
        self._revoked: frozenset[str] = frozenset()
        self._seen: dict[bytes, Claims] = {}

    def swap(self, snapshot: Snapshot, changed: Set[str] | None = None) -> None:
        """Put the rules, clients and revocations of a snapshot in force.

        changed: the tenants whose clients are in it; None: it is whole.
        """
        rules = snapshot.tokens
        known = self._rules
        if (
            rules is None
            or known is None
            or (rules.issuer, rules.audience, rules.keys)
            != (known.issuer, known.audience, known.keys)
        ):
            self._keys = tokens.public_keys(rules)
            self._seen.clear()  # a key that is gone must not live on in what it once signed
        self._rules = rules
        self._clients.put(snapshot.clients, changed)
        self._revoked = frozenset(() if rules is None else rules.revoked)

    def principal(self, token: bytes, now: float) -> Principal:
        """Return who presents `token`. now: unix seconds. Raises InvalidTokenError."""
        digest = hashlib.sha256(token).digest()
        claims = self._seen.get(digest)
        if claims is None:
            claims = tokens.judge(token, self._rules, self._keys, now)
            if len(self._seen) >= self._remembered:
                del self._seen[next(iter(self._seen))]  # the oldest: tokens live for minutes
            self._seen[digest] = claims
        elif claims.expires_at + tokens.LEEWAY_S <= now:
            del self._seen[digest]
            raise InvalidTokenError("this access token has expired; get a new one")
        client = self._clients.by_id.get(claims.client)
        if client is None or client.tenant != claims.tenant or claims.id in self._revoked:
            raise InvalidTokenError("this access token was revoked; get a new one")
        return Principal(
            kind="token",
            id=client.id,
            tenant=client.tenant,
            scopes=tokens.in_force(claims, client.scopes),
        )
