"""How often a password may be tried, and a tenant registered, before it takes patience."""

from __future__ import annotations

from dataclasses import dataclass

from polyolo.control.service import tries
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.tries import Key
from polyolo.control.service.vault import Vault
from polyolo.control.throttle import Pace, network

_HOUR_S = 3600.0
PAIR = Pace(free=5, first_s=5.0, longest_s=900.0)
"""One account from one address: five tries at once are enough for a person who mistypes."""
ACCOUNT = Pace(free=20, first_s=1.0, longest_s=60.0)
"""One account from anywhere: slow for a guesser with many addresses, yet nobody can lock the
owner out for more than a minute."""
SOURCE = Pace(free=50, first_s=1.0, longest_s=900.0)
"""Any account from one address, which may be an office's."""
REGISTRATIONS = Pace(free=20, first_s=60.0, longest_s=_HOUR_S)
"""Tenants from one address: each costs a runtime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """Counts tries of passwords by account, by address and by both. Any thread may use it."""

    ledger: Ledger
    vault: Vault

    def begin(self, account: str, source: str) -> None:
        """Count a try, before the password is looked at. Raises RateLimitedError."""
        tries.begin(self.ledger, self.vault, [_source(source), *_own(account, source)])

    def right(self, account: str, source: str) -> None:
        """Forget what was tried on the account: the password was right.

        Of the address's tries only this one: an account of one's own must not wipe the slate.
        """
        tries.forgive(self.ledger, self.vault, [_source(source)], _own(account, source))


def _source(source: str) -> Key:
    return Key(pace=SOURCE, what=("source", network(source)))


def _own(account: str, source: str) -> list[Key]:
    pair = Key(pace=PAIR, what=("pair", account, network(source)))
    return [pair, Key(pace=ACCOUNT, what=("account", account))]
