"""How often a password may be tried, and a tenant registered, before it takes patience."""

from __future__ import annotations

from collections.abc import Callable

from polyolo.control.throttle import Pace, Throttle, network

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


class Guesses:
    """Counts tries of passwords by account, by address and by both. Any thread may use it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with nothing counted. clock: seconds."""
        self._pair = Throttle(PAIR, clock)
        self._account = Throttle(ACCOUNT, clock)
        self._source = Throttle(SOURCE, clock)

    def begin(self, account: str, source: str) -> None:
        """Count a try, before the password is looked at. Raises RateLimitedError."""
        source = network(source)
        self._source.begin(source)
        self._pair.begin((account, source))
        self._account.begin(account)

    def right(self, account: str, source: str) -> None:
        """Forget what was tried on the account: the password was right."""
        source = network(source)
        self._pair.clear((account, source))
        self._account.clear(account)
        self._source.forgive(source)  # one only: an account of one's own must not wipe the slate
