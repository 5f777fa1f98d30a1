"""Slows down whoever guesses: after some tries, each next one has to wait longer.

What is a guess at a secret is counted in the database (`service.tries`), for all control planes
together; what only costs work is counted here in memory, by each process for itself.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from polyolo.errors import RateLimitedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many tries are free, and how long the next ones wait."""

    free: int
    """Tries that nobody has to wait for; a person mistypes."""
    first_s: float
    """Seconds before the try after those; doubled with each one."""
    longest_s: float
    """Seconds of the longest wait; when it has passed twice without a try, all is forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The tries of one key, an address or an account. Times are seconds of one clock."""

    tries: int = 0
    last: float = 0.0
    until: float = 0.0
    """The next try waits until then."""


def counted(pace: Pace, count: Count, now: float) -> Count:
    """Return the count with one more try, made now.

    Raises RateLimitedError, with the seconds to wait, when it is too early.
    """
    if abs(now - count.last) > 2 * pace.longest_s:  # a clock that was put back forgets, too
        count = Count()
    if now < count.until:
        raise RateLimitedError(
            "too many tries; wait a while before the next one", retry_after=count.until - now
        )
    tries, wait = count.tries + 1, 0.0
    if tries >= pace.free:
        # The exponent is bounded: 2.0 ** 1100 is no number.
        wait = min(pace.first_s * 2.0 ** min(tries - pace.free, 60), pace.longest_s)
    return Count(tries=tries, last=now, until=now + wait)


def forgiven(count: Count, now: float) -> Count:
    """Return the count with one try taken back: it was a good one."""
    return replace(count, tries=max(0, count.tries - 1), until=min(count.until, now))


class Throttle:
    """Counts tries by key in memory. Any thread may use it.

    A try counts when it begins, so that many at once gain nothing.
    """

    def __init__(self, pace: Pace, clock: Callable[[], float], *, capacity: int = 20_000) -> None:
        """Keep at most `capacity` keys, the latest. clock: seconds."""
        self._pace = pace
        self._clock = clock
        self._capacity = capacity
        self._counts: OrderedDict[Hashable, Count] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, key: Hashable) -> None:
        """Count a try. Raises RateLimitedError, with the seconds to wait, when it is too early."""
        now = self._clock()
        with self._lock:
            self._counts[key] = counted(self._pace, self._counts.get(key, Count()), now)
            self._counts.move_to_end(key)
            while len(self._counts) > self._capacity:
                self._counts.popitem(last=False)

    def __len__(self) -> int:
        return len(self._counts)


def network(source: str) -> str:
    """Return whose address this is: an IPv6 customer has a whole /64 to come from."""
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return source
    if address.version == 4:
        return source
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network(f"{address}/64", strict=False))
