"""Slows down whoever guesses: after some tries, each next one has to wait longer."""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

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


@dataclass(slots=True)
class _Count:
    tries: int = 0
    last: float = 0.0
    until: float = 0.0


class Throttle:
    """Counts tries by key (an address, an account). Any thread may use it.

    A try counts when it begins, so that many at once gain nothing; `forgive` takes it back.
    """

    def __init__(self, pace: Pace, clock: Callable[[], float], *, capacity: int = 20_000) -> None:
        """Keep at most `capacity` keys, the latest. clock: seconds."""
        self._pace = pace
        self._clock = clock
        self._capacity = capacity
        self._counts: OrderedDict[Hashable, _Count] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, key: Hashable) -> None:
        """Count a try. Raises RateLimitedError, with the seconds to wait, when it is too early."""
        now, pace = self._clock(), self._pace
        with self._lock:
            count = self._counts.setdefault(key, _Count())
            self._counts.move_to_end(key)
            if now - count.last > 2 * pace.longest_s:
                count.tries = 0
            if now < count.until:
                raise RateLimitedError(
                    "too many tries; wait a while before the next one",
                    retry_after=count.until - now,
                )
            count.tries += 1
            count.last = now
            if count.tries >= pace.free:
                # The exponent is bounded: 2.0 ** 1100 is no number.
                doubled = pace.first_s * 2.0 ** min(count.tries - pace.free, 60)
                count.until = now + min(doubled, pace.longest_s)
            while len(self._counts) > self._capacity:
                self._counts.popitem(last=False)

    def forgive(self, key: Hashable) -> None:
        """Take one try back: it was a good one."""
        with self._lock:
            count = self._counts.get(key)
            if count is not None and count.tries > 0:
                count.tries -= 1
                count.until = min(count.until, self._clock())

    def clear(self, key: Hashable) -> None:
        """Forget a key's tries."""
        with self._lock:
            self._counts.pop(key, None)

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
