"""Lets only so many runtimes start at once: twenty at once would each take as long as all of them.

Who is waited for comes before those that are started because they were in use before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

_LAPSE_S = 5.0
"""After so long a start no longer keeps others waiting: it hangs, or loads something large."""


class Starts:
    """Those who start and those in line. Any thread may use it. Times: seconds of one clock."""

    def __init__(self, most: int) -> None:
        """Let `most` start at once."""
        self._most = most
        self._lock = threading.Lock()
        self._starting: dict[str, float] = {}
        self._urgent: OrderedDict[str, None] = OrderedDict()
        self._others: OrderedDict[str, None] = OrderedDict()

    def urge(self, tenant: str) -> None:
        """Note that somebody waits for this one."""
        with self._lock:
            if tenant not in self._starting:
                self._others.pop(tenant, None)
                self._urgent[tenant] = None

    def may(self, tenant: str, now: float) -> bool:
        """Say whether one may start; else it stands in line, and asks again when told, or later."""
        with self._lock:
            if tenant in self._starting:
                return True
            at_it = sum(now - since < _LAPSE_S for since in self._starting.values())
            if tenant not in self._urgent:
                self._others[tenant] = None
            if tenant in self._next(self._most - at_it):
                self._urgent.pop(tenant, None)
                self._others.pop(tenant, None)
                self._starting[tenant] = now
                return True
            return False

    def over(self, tenant: str) -> list[str]:
        """Note that one no longer starts, nor wants to; return those that may now."""
        with self._lock:
            before = self._starting.pop(tenant, None)
            self._urgent.pop(tenant, None)
            self._others.pop(tenant, None)
            return self._next(self._most - len(self._starting)) if before is not None else []

    def _next(self, number: int) -> list[str]:
        return [*self._urgent, *self._others][: max(0, number)]
